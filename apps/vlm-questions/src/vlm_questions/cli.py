"""The command line of `vlm-questions`. It imports nothing heavy, so that --help answers at once."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vlm_questions.errors import QuestionsError
from vlm_runs import completion

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def questions(
    data: Annotated[
        Path,
        typer.Option(help="A CSV table with an image column and columns of attributes, or a folder of ABO's files."),
    ],
    out: Annotated[Path, typer.Option(help="Write the questions to this .csv file.")] = Path("questions.csv"),
    image_dir: Annotated[
        Path | None, typer.Option(help="Where the images are. (default: the table's folder; of ABO, images/small)")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Ask about this many images, chosen by chance. (default: all)")
    ] = None,
    per_image: Annotated[int, typer.Option(min=1, help="At most this many questions about an image.")] = 10,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="By templates, ask about these only: color,material,shape,pattern,count. (default: all)",
            autocompletion=completion.listed("color", "material", "shape", "pattern", "count"),
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="The language of ABO's texts; en takes en_US, en_GB and so on.")] = "en",
    seed: Annotated[int, typer.Option(help="Choose other images and other templates.")] = 0,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Ask a model here, such as http://localhost:8000/v1. (default: templates, without a model)"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's name of the model.")] = None,
    key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the endpoint's key, if it asks for one.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the endpoint at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Times to repeat a request that fails, waiting longer.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a reply.")] = 60.0,
) -> None:
    """Make questions and one-word answers about images of products, as a table that vlm-train reads."""
    try:
        if out.suffix != ".csv":
            raise QuestionsError(f"--out {out} must end in .csv")
        if (endpoint is None) != (model is None):
            raise QuestionsError("--endpoint and --model go together")
        if kinds is not None and endpoint is not None:
            raise QuestionsError("--kinds goes with templates; a model asks about what it sees")
    except QuestionsError as error:
        _fail(error)

    with Console(stderr=True).status("starting"):
        from vlm_data import DataError
        from vlm_questions.make import by_model, by_templates, read
        from vlm_questions.result import finish

    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        products, image_dir, rejected = read(data, image_dir, language, images, seed)
        if endpoint is None:
            made = by_templates(products, seed, per_image, kinds)
        else:
            key = os.environ.get(key_variable)
            made = by_model(products, endpoint, model, key, out, per_image, concurrency, retries, timeout)
        finish(out, made, len(products), rejected, image_dir)
    except (QuestionsError, DataError) as error:
        _fail(error)


def _fail(error: Exception) -> None:
    typer.secho(f"error: {error}", fg="red", err=True)
    raise typer.Exit(2)
