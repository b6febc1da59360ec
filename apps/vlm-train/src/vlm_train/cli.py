"""The command line of `vlm-train`. It imports nothing heavy, so that --help answers at once."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm_train.config import ConfigError, TrainConfig, read_config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def train(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A YAML file of these options; the command line wins.")] = None,
    show_example: Annotated[bool, typer.Option("--show-example", help="Show what is trained on, then stop.")] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Show what is in the data: numbers, and a picture of 24 rows; then stop.")
    ] = False,
    **options: Any,
) -> None:
    """Adapt a vision-language model to your own images.

    Without options: fine-tune tiny-qwen2-vl with LoRA on easy-VQA, in three minutes on a laptop.
    """
    try:
        if config is not None:
            given = {name for name in options if ctx.get_parameter_source(name).name != "DEFAULT"}
            options |= {name: value for name, value in read_config(config).items() if name not in given}
        chosen = TrainConfig(**options)
    except ConfigError as error:
        _fail(error)

    from vlm_train.run import UserError, run, show

    try:
        if describe:
            from vlm_train.describe import describe as describe_data

            describe_data(chosen)
        else:
            show(chosen) if show_example else run(chosen)
    except UserError as error:
        _fail(error)


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)


def _with_options(function: Any) -> Any:
    """Give the command one option for each field of `TrainConfig`, which is thus written down once."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    of_config = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(TrainConfig)
    ]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own[1:]]
    function.__signature__ = inspect.Signature([own[0], *of_config, *keyword_only])
    function.__annotations__ = {p.name: p.annotation for p in function.__signature__.parameters.values()}
    return function


app.command()(_with_options(train))
