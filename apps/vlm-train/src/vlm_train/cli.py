"""The command line of `vlm-train`. It imports nothing heavy, so that --help answers at once."""

import inspect
from collections.abc import Collection
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vlm_runs import completion
from vlm_train.errors import ConfigError
from vlm_train.options.checks import METHODS, OPTIMIZERS, PARTS
from vlm_train.options.config import PANELS, TrainConfig
from vlm_train.options.config_file import effective, read_with_lines
from vlm_train.resuming import options_of
from vlm_train.schedules import SCHEDULES

app = typer.Typer(pretty_exceptions_enable=False)

COMPLETIONS = {  # what the shell offers for the options of `TrainConfig`; files where nothing stands here
    "model": completion.models,
    "data": completion.data,
    "val_data": completion.data,
    "format": completion.formats,
    "answer_choice": completion.names("frequent", "sample"),
    "quantization": completion.quantizations,
    "dtype": completion.dtypes,
    "device": completion.devices,
    "method": completion.names(*METHODS, "peft"),
    "vision_method": completion.names(*METHODS),
    "targets": completion.names(*PARTS),
    "schedule": completion.names(*SCHEDULES),
    "optimizer": completion.names(*OPTIMIZERS),
    "metric": completion.names("exact_match", "vqa_accuracy", "bleu", "loss"),
    "cache_features": completion.names("on", "off"),
    "track": completion.listed("tensorboard", "wandb", "mlflow"),
}


def train(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A YAML file of these options; the command line wins.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all options and where each comes from, then stop.")
    ] = False,
    show_example: Annotated[bool, typer.Option("--show-example", help="Show what is trained on, then stop.")] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Show what is in the data: numbers, and a picture of 24 rows; then stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan (steps, tokens, memory, time); train two steps and stop.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder, where it stopped.", autocompletion=completion.runs),
    ] = None,
    **options: Any,
) -> None:
    """Adapt a vision-language model to your own images.

    Without options: fine-tune tiny-qwen2-vl with LoRA on easy-VQA, in three minutes on a laptop.
    """
    try:
        instead = {"print-config": print_config, "show-example": show_example, "describe": describe, "dry-run": dry_run}
        _check_one([name for name, chosen in instead.items() if chosen])
        given = {name for name in options if ctx.get_parameter_source(name).name != "DEFAULT"}
        if resume is not None:
            if config is not None or any(instead.values()):
                raise ConfigError("--resume goes on with a run, by its own options; leave the others out")
            options = options_of(resume, {name: options[name] for name in given})
        sources = dict.fromkeys(given, "command line")
        for name, (value, line) in (read_with_lines(config) if config is not None else {}).items():
            if name not in given:
                options[name], sources[name] = value, f"{config}:{line}"
        chosen = _checked(options, sources)
    except ConfigError as error:
        _fail(error)
    if print_config:
        typer.echo(effective(chosen, sources), nl=False)
        return

    with Console(stderr=True).status("starting"):
        from vlm_train.run import UserError, run, show

    try:
        if describe:
            from vlm_train.describe import describe as describe_data

            describe_data(chosen)
        elif dry_run:
            from vlm_train.dry_run import dry_run as plan

            plan(chosen)
        else:
            show(chosen) if show_example else run(chosen, resume is not None)
    except UserError as error:
        _fail(error)


def _checked(options: dict[str, Any], sources: dict[str, str]) -> TrainConfig:
    try:
        return TrainConfig(**options)
    except ConfigError as error:
        option = str(error).split()[0].removeprefix("--").replace("-", "_")
        place = sources.get(option, "command line")
        raise ConfigError(f"{error} ({place})" if place != "command line" else str(error)) from None


def _check_one(instead: list[str]) -> None:
    if len(instead) > 1:
        raise ConfigError(f"--{instead[0]} and --{instead[1]} each stop after what they show; give one of them")


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)


def with_options(function: Any, without: Collection[str] = ()) -> Any:
    """Give a command one option for each field of `TrainConfig`, but for some: options are written down once."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    of_config = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_in_panel(field.name, field.type),
        )
        for field in fields(TrainConfig)
        if field.name not in without
    ]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own[1:]]
    function.__signature__ = inspect.Signature([own[0], *of_config, *keyword_only])
    function.__annotations__ = {p.name: p.annotation for p in function.__signature__.parameters.values()}
    return function


def _in_panel(name: str, annotated: Any) -> Any:
    """The option in its part of `--help`, completed by the shell."""
    option = copy(annotated.__metadata__[0])
    option.autocompletion = COMPLETIONS.get(name)
    option.rich_help_panel = next(panel for panel, names in PANELS.items() if name in names.split())
    return Annotated[annotated.__origin__, option]


app.command()(with_options(train))
