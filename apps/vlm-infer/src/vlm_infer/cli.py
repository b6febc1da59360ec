"""The command line of `vlm-infer`. It imports nothing heavy, so that --help answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from vlm_infer.errors import InferError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def infer(
    run: Annotated[Path, typer.Option(help="The folder of a run, written by vlm-train.")],
    image: Annotated[Path | None, typer.Option(help="One image.")] = None,
    images: Annotated[Path | None, typer.Option(help="A folder of images, searched to the bottom.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="A CSV table with an image_name column and, if you like, a question column.")
    ] = None,
    image_dir: Annotated[
        Path | None, typer.Option(help="Where the table's images are. (default: the table's folder)")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Ask this of every image. (default: the table's questions, else a caption)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the texts to this .csv or .jsonl file. (default: print them)")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(help="Draw where each word of a text looks in its image: a PNG for each row, in this folder."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a forward pass.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text, in tokens.")] = 48,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams to search with; 1 is greedy.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps or xpu.")] = "auto",
) -> None:
    """Caption images, or answer questions about them, with a model that vlm-train adapted."""
    try:
        _check(run, image, images, table, image_dir, out, attention)
    except InferError as error:
        _fail(error)

    from vlm_infer.predict import UserError, predict
    from vlm_infer.rows import read_rows
    from vlm_infer.run import load_run
    from vlm_infer.write import show, write

    try:
        rows, rejected = read_rows(image, images, table, image_dir, question)
        vlm = load_run(run, device)
        if attention is not None:
            attention.mkdir(parents=True, exist_ok=True)
        texts = predict(vlm, rows, batch_size, max_new_tokens, num_beams, attention)
        if out is None:
            show(rows, texts)
        else:
            write(out, rows, texts, rejected)
    except (InferError, *UserError) as error:
        _fail(error)
    for record in rejected:
        typer.secho(f"skipped {record.source}: {record.reason}", fg="yellow", err=True)


def _check(
    run: Path,
    image: Path | None,
    images: Path | None,
    table: Path | None,
    image_dir: Path | None,
    out: Path | None,
    attention: Path | None,
) -> None:
    if not (run / "run.json").is_file():
        raise InferError(f"--run {run} is no run: it holds no run.json; give a folder that vlm-train wrote")
    if sum(option is not None for option in (image, images, table)) != 1:
        raise InferError("give one of --image FILE, --images DIR or --table CSV")
    if image_dir is not None and table is None:
        raise InferError("--image-dir goes with --table")
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise InferError(f"--out {out} must end in .csv or .jsonl")
    if attention is not None and attention.exists() and not attention.is_dir():
        raise InferError(f"--attention {attention} is a file; give a folder for the drawings")


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)
