"""The command line of `vlm-compare`. It imports nothing heavy, so that --help answers at once."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vlm_runs import completion
from vlm_train.cli import with_options
from vlm_train.errors import ConfigError
from vlm_train.options.checks import METHODS
from vlm_train.options.config_file import read_config

app = typer.Typer(pretty_exceptions_enable=False)


def compare(
    ctx: typer.Context,
    methods: Annotated[
        str, typer.Option(help="Of vlm-train, separated by commas.", autocompletion=completion.listed(*METHODS))
    ] = "lora,houlsby,prefix,grit",
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Values of an option to try with each method: learning_rate=1e-3,3e-3; again for others."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds 0, 1, …")] = 3,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are tested against, as the table names it. (default: the first)")
    ] = None,
    forgetting: Annotated[
        str | None,
        typer.Option(
            help="Other data, to tell by how much the model is worse there than before.",
            autocompletion=completion.data,
        ),
    ] = None,
    forgetting_rows: Annotated[int, typer.Option(help="Rows of these data at most; 0 is all.")] = 500,
    config: Annotated[Path | None, typer.Option(help="A YAML file of vlm-train's options for all runs.")] = None,
    out: Annotated[Path, typer.Option(help="The folder; the same one goes on with it.")] = Path("compared"),
    **options: Any,
) -> None:
    """Train with several methods under equal conditions, and compare what comes out.

    All options of vlm-train are taken, for all runs. Runs that are done are not trained again: the same command goes on
    where it was stopped.
    """
    from vlm_compare.cells import cells_of

    try:
        given = {name for name in options if ctx.get_parameter_source(name).name != "DEFAULT"}
        read = read_config(config) if config is not None else {}
        for name in ("method", "seed", "out", "overwrite"):
            if name in read:
                raise ConfigError(f"--config {config}: {name} is another one in each run; leave it out")
        options |= {name: value for name, value in read.items() if name not in given}
        cells = cells_of(methods, grid or [], seeds, options)
        groups = list(dict.fromkeys(cell.group for cell in cells))
        if baseline is not None and baseline not in groups:
            raise ConfigError(f"--baseline {baseline!r} is not among those compared: {'; '.join(groups)}")
        if forgetting_rows < 0:
            raise ConfigError("--forgetting-rows must not be negative")
    except ConfigError as error:
        _fail(error)

    with Console(stderr=True).status("starting"):
        from vlm_compare.run import run
        from vlm_train.run import UserError

    try:
        failed = run(cells, baseline or groups[0], out, forgetting, forgetting_rows)
    except UserError as error:
        _fail(error)
    if failed:
        raise typer.Exit(1)


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)


app.command()(with_options(compare, without=("method", "seed", "out", "overwrite")))
