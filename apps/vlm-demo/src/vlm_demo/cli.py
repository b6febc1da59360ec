"""The command line of `vlm-demo`. It imports nothing heavy, so that --help answers at once."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from vlm_demo.errors import DemoError
from vlm_runs import completion

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def demo(
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="The folder of a run, written by vlm-train; several can be given.", autocompletion=completion.runs
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model without an adapter: hub id, folder or tiny name; several can be given.",
            autocompletion=completion.models,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 lets in everyone who reaches this machine.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The port. (default: the first free one from 7860 on)")] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, mps or xpu.", autocompletion=completion.devices)
    ] = "auto",
) -> None:
    """A local web page: drop a picture, ask, and see the answers of several models side by side."""
    from vlm_demo.sources import read_examples, read_sources

    try:
        _check_listening(host, port)
        sources = read_sources(run or [], model or [])
        examples = read_examples(run or [])
    except DemoError as error:
        _fail(error)

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and by its processes
    print(f"loading {', '.join(source.name for source in sources)} …", flush=True)
    import transformers

    from vlm_demo.models import UserError, load_all

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        models = load_all(sources, device)
    except UserError as error:
        _fail(error)

    from vlm_demo.page import build, serve

    page = build(models, examples)
    print(f"{serve(page, host, port)}  (Ctrl-C stops it)", flush=True)
    page.block_thread()


def _check_listening(host: str, port: int | None) -> None:
    """Raise DemoError where nothing can listen: to know it before models are loaded."""
    try:
        socket.create_server((host, port or 0)).close()
    except (OSError, OverflowError) as error:
        place = f"--host {host}" if port is None else f"--host {host} --port {port}"
        reason = str(error.args[-1]).partition(" (while")[0]
        raise DemoError(f"{place}: cannot listen there ({reason}); choose another") from None


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)
