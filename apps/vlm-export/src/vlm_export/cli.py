"""The command line of `vlm-export`. It imports nothing heavy, so that --help answers at once."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vlm_export.errors import ExportError
from vlm_runs import completion

TO = ("model", "peft", "run")
DTYPES = ("float32", "bfloat16", "float16", "float64")
app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    run: Annotated[
        Path | None,
        typer.Option(help="The folder of a run, written by vlm-train.", autocompletion=completion.runs),
    ] = None,
    adapters: Annotated[
        str | None,
        typer.Option(
            help="Several runs or adapter folders of one base model, each with a weight: runs/a=0.7,runs/b=0.3.",
            autocompletion=completion.runs,
        ),
    ] = None,
    from_peft: Annotated[
        Path | None, typer.Option(help="The folder of an adapter that Hugging Face PEFT wrote, in the place of a run.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The base model, for adapters without a run. (default: the one that the adapter names)",
            autocompletion=completion.models,
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="model: a plain transformers model with the adapter merged into it; peft: an adapter for Hugging Face "
            "PEFT; run: the adapter as it is, in a folder that the other commands take for --run.",
            autocompletion=completion.names(*TO),
        ),
    ] = "model",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Make a LoRA this rank, as near to what it was as the rank allows.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the exported model: float32, bfloat16, float16, float64. (default: the run's)",
            autocompletion=completion.names(*DTYPES),
        ),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="The largest weights file, as 5GB or 500MB.")] = "5GB",
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Load what was written in a new process, with transformers alone, and compare logits."
        ),
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Upload the folder to this repository of the hub, as owner/name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, mps or xpu.", autocompletion=completion.devices)
    ] = "auto",
) -> None:
    """Turn what vlm-train made into what other programs load."""
    from vlm_export.folder import check_free
    from vlm_export.source import read_source

    try:
        _check(to, dtype, shard_size, check, push_to_hub, private)
        check_free(out)
        source = read_source(run, adapters, from_peft, model)
        if to == "model" and source.unmergeable:
            raise ExportError(f"--to model: {source.unmergeable}; --to run exports the adapter as it is")
        if push_to_hub is not None:
            from vlm_export.push import check_access, push

            check_access(push_to_hub)
    except ExportError as error:
        _fail(error)

    with Console(stderr=True).status("starting"):
        from vlm_export.export import Options, UserError
        from vlm_export.export import export as write

    try:
        write(source, Options(out, to, rank, dtype, device, shard_size, check))
        if push_to_hub is not None:
            print(f"uploaded to {push(out, push_to_hub, private)}")
    except UserError as error:
        _fail(error)


def _check(to: str, dtype: str | None, shard_size: str, check: bool, push_to_hub: str | None, private: bool) -> None:
    if to not in TO:
        raise ExportError(f"--to {to!r} is unknown; known: {', '.join(TO)}")
    if dtype is not None and to != "model":
        raise ExportError("--dtype is of an exported model; adapters stay in float32: leave it out, or --to model")
    if dtype is not None and dtype not in DTYPES:
        raise ExportError(f"--dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", shard_size):
        raise ExportError(f"--shard-size {shard_size!r} is no size as 5GB or 500MB")
    if check and to == "run":
        raise ExportError("--check is for --to model and --to peft; vlm-infer --run reads a run")
    if private and push_to_hub is None:
        raise ExportError("--private goes with --push-to-hub")


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)
