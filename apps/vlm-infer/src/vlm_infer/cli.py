"""The command line of `vlm-infer`. It imports nothing heavy, so that --help answers at once."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vlm_infer.errors import InferError
from vlm_runs import completion

app = typer.Typer(pretty_exceptions_enable=False)
ENDINGS = (".csv", ".jsonl", ".parquet", ".json")
ENGINES = ("local", "ray")
MODEL, INPUT, OUTPUT, GENERATION, SPEED = "Model", "Input", "Output", "Generation", "Speed"


@app.command()
def infer(
    run: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a run, written by vlm-train.", rich_help_panel=MODEL, autocompletion=completion.runs
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="An adapter of ours or of Hugging Face PEFT: folder or hub id.",
            rich_help_panel=MODEL,
            autocompletion=completion.adapters,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model: hub id, folder or tiny name; with --adapter its base. (default: as the adapter says)",
            rich_help_panel=MODEL,
            autocompletion=completion.models,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of --model on the hub.", rich_help_panel=MODEL)
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="none, nf4, int8 or auto. (default: as the run was trained, else none)",
            rich_help_panel=MODEL,
            autocompletion=completion.quantizations,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="auto, float32, bfloat16 or float16. (default: as the run was trained, else auto)",
            rich_help_panel=MODEL,
            autocompletion=completion.dtypes,
        ),
    ] = None,
    max_image_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Shrink images that would take more tokens. (default: as the run was trained, else 1024)",
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda, mps or xpu.", rich_help_panel=MODEL, autocompletion=completion.devices),
    ] = "auto",
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image; give it again for more.", metavar="<path>", rich_help_panel=INPUT),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images, searched to the bottom.", rich_help_panel=INPUT)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--table",
            help="Whatever vlm-train reads: a table (CSV, JSONL, Parquet), a COCO or VQA file, easy-vqa, ...",
            rich_help_panel=INPUT,
            autocompletion=completion.data,
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="Shards larger than memory (WebDataset .tar, .parquet, .jsonl): a file, a folder or a pattern.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    image_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the images are that a table names. (default: the table's folder)", rich_help_panel=INPUT
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="Format of --data; auto tells it from what is there.",
            rich_help_panel=INPUT,
            autocompletion=completion.formats,
        ),
    ] = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            help="Which part of --data: train, validation or test.",
            rich_help_panel=INPUT,
            autocompletion=completion.names("train", "validation", "test"),
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="A table's columns, as image=photo,prompt=question,references=answer. (default: the usual names)",
            rich_help_panel=INPUT,
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="Ask this of every image. (default: each row's question, else a caption)", rich_help_panel=INPUT
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the texts to this .csv, .jsonl or .parquet file, or .json for COCO's and VQA's tools. "
            "(default: print them)",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Begin anew, whatever was begun or done in --out.", rich_help_panel=OUTPUT),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Make a page of the texts beside their images: an .html file.", rich_help_panel=OUTPUT),
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(
            help="Draw where each word of a text looks in its image: a PNG for each row, in this folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="The longest text, in tokens.", rich_help_panel=GENERATION)
    ] = 48,
    num_beams: Annotated[
        int, typer.Option(min=1, help="Beams to search with; 1 is greedy.", rich_help_panel=GENERATION)
    ] = 1,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, help="Draw words, more freely the higher; 0 takes the likeliest.", rich_help_panel=GENERATION
        ),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            help="Draw among the likeliest words that have this probability together.", rich_help_panel=GENERATION
        ),
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the draws; with the same one the texts are the same.", rich_help_panel=GENERATION),
    ] = 0,
    batch_size: Annotated[
        str,
        typer.Option(help="Rows in a forward pass; auto halves it when memory is short.", rich_help_panel=SPEED),
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="local: in this process; ray: by the workers of a Ray cluster.",
            rich_help_panel=SPEED,
            autocompletion=completion.names(*ENGINES),
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers of --engine ray. (default: one for each GPU)", rich_help_panel=SPEED),
    ] = None,
) -> None:
    """Caption images, or answer questions about them: with a run of vlm-train, an adapter, or a plain model."""
    try:
        _check(image, images, data, stream, image_dir, out, report, attention)
        rows_at_once = _batch_size(batch_size)
        if not 0 < top_p <= 1:
            raise InferError(f"--top-p {top_p} must be above 0 and at most 1")
        if temperature > 0 and num_beams > 1:
            raise InferError("--temperature draws and --num-beams searches: give one of them")
        if temperature == 0 and top_p < 1:
            raise InferError("--top-p goes with --temperature above 0")
        if engine not in ENGINES:
            raise InferError(f"--engine {engine} must be {' or '.join(ENGINES)}")
        if workers is not None and engine != "ray":
            raise InferError("--workers goes with --engine ray; several local processes are started by torchrun")
        from vlm_infer.model import find_model

        spec = find_model(run, adapter, model, revision, quantization, dtype, device, max_image_tokens)
    except InferError as error:
        _fail(error)

    with Console(stderr=True).status("starting"):
        from vlm_infer.answering import UserError
        from vlm_infer.generation import Generation
        from vlm_infer.infer import infer
        from vlm_infer.results import Outputs
        from vlm_infer.rows import Inputs

    inputs = Inputs(tuple(image or ()), images, data, stream, image_dir, format, split, columns, question)
    outputs = Outputs(out, overwrite, report, attention)
    generation = Generation(max_new_tokens, num_beams, temperature, top_p, seed)
    try:
        infer(spec, inputs, outputs, generation, rows_at_once, engine, workers)
    except (InferError, OSError, *UserError) as error:
        _fail(error)


def _check(
    image: list[Path] | None,
    images: Path | None,
    data: str | None,
    stream: str | None,
    image_dir: Path | None,
    out: Path | None,
    report: Path | None,
    attention: Path | None,
) -> None:
    if sum(bool(option) for option in (image, images, data, stream)) != 1:
        raise InferError("give one of --image FILE, --images DIR, --data TABLE or --stream SHARDS")
    if image_dir is not None and not (data or stream):
        raise InferError("--image-dir goes with --data or --stream")
    if out is not None and out.suffix not in ENDINGS:
        raise InferError(
            f"--out {out} must end in .csv or .jsonl, or in .parquet, or in .json for COCO's or VQA's tools"
        )
    if report is not None and report.suffix != ".html":
        raise InferError(f"--report {report} must end in .html")
    if attention is not None and attention.exists() and not attention.is_dir():
        raise InferError(f"--attention {attention} is a file; give a folder for the drawings")


def _batch_size(asked: str) -> int | None:
    """None: found by halving."""
    if asked == "auto":
        return None
    if not asked.isdecimal() or int(asked) == 0:
        raise InferError(f"--batch-size {asked} must be auto, or a number from 1")
    return int(asked)


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
