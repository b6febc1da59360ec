"""The command line of `vlm-score`. It imports nothing heavy, so that --help answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from vlm_runs import completion
from vlm_score.errors import ScoreError

app = typer.Typer(pretty_exceptions_enable=False)


def _metrics(incomplete: str) -> list[str]:
    from vlm_score.metrics import METRICS

    return completion.listed(*METRICS)(incomplete)


@app.command()
def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="A CSV or JSONL table, COCO or VQA results (.json), or the folder of a run of vlm-train.",
            autocompletion=completion.runs,
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(help="A table, or COCO or VQA annotations. (default: the references in the predictions' file)"),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Other predictions for the same rows, to compare with.", autocompletion=completion.runs),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas. (default: those that suit answers or captions)", autocompletion=_metrics
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the rows that both files have, though ids are missing or extra.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where the results go. (default: NAME-scores beside the predictions)")
    ] = None,
    image_dir: Annotated[
        Path | None, typer.Option(help="Where the images are. (default: where the file says, or beside it)")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="VQA's file of questions, to show them in the report.")] = None,
    prediction_column: Annotated[str | None, typer.Option(help="The field that holds the predictions.")] = None,
    reference_column: Annotated[str | None, typer.Option(help="The field that holds the references.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The field by which the two files are joined.")] = None,
    encoder: Annotated[
        str, typer.Option(help="Text encoder of bert_score and frechet_distance: hub id, folder, or offline.")
    ] = "offline",
    clip: Annotated[
        str, typer.Option(help="CLIP of clip_score and ref_clip_score: hub id or folder.")
    ] = "openai/clip-vit-base-patch32",
    device: Annotated[
        str,
        typer.Option(
            help="Where these models run: cpu, cuda, mps or xpu.",
            autocompletion=completion.names("cpu", "cuda", "mps", "xpu"),
        ),
    ] = "cpu",
) -> None:
    """Score captions or answers, with intervals, and make a page to look at them."""
    from vlm_score.metrics import Models
    from vlm_score.rows import Columns
    from vlm_score.run import UserError, run

    try:
        run(
            predictions=predictions,
            references=references,
            against=against,
            metrics=metrics,
            partial=partial,
            out=out,
            image_dir=image_dir,
            questions=questions,
            columns=Columns(prediction_column, reference_column, id_column),
            models=Models(encoder, clip, device),
        )
    except (ScoreError, *UserError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
