"""One scoring from files to results: read, join, score, compare, write."""

import warnings
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import vlm_eval
from vlm_eval import report
from vlm_eval.report import Row
from vlm_runs.files import write_whole
from vlm_score import metrics as of_metrics
from vlm_score.errors import ScoreError
from vlm_score.files import Record, read_records
from vlm_score.metrics import METRICS, Models
from vlm_score.rows import Answer, Columns, join
from vlm_score.write import rows_csv, scores_json, scores_markdown

UserError = (OSError, ImportError)


def run(
    predictions: Path,
    references: Path | None,
    against: Path | None,
    metrics: str | None,
    partial: bool,
    out: Path | None,
    image_dir: Path | None,
    questions: Path | None,
    columns: Columns,
    models: Models,
) -> Path:
    """Score, print and write; returns the folder of the results. Raises `ScoreError` for what cannot be scored."""
    records = read_records(predictions)
    truth = None if references is None else _with_questions(read_records(references), questions)
    rows, answers, left_out = join(records, truth, columns, partial)
    names = of_metrics.choose(metrics, rows)
    rows = [_find_image(row, _folders(image_dir, predictions, references)) for row in rows]
    console = Console()
    sides = [(predictions, answers)]
    if against is not None:
        sides.append((against, _other_answers(against, rows, truth, columns, partial)))
    runs = [_score(_title(path), rows, own, names, models, console) for path, own in sides]
    comparisons = {}
    if against is not None:
        clusters = [row.image or row.id for row in rows]
        comparisons = {name: vlm_eval.compare(runs[0].scores[name], runs[1].scores[name], clusters) for name in names}

    folder = out or predictions.with_name(f"{predictions.stem}-scores")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "scores.json", scores_json(rows, runs, comparisons, left_out))
    write_whole(folder / "scores.md", scores_markdown(rows, runs, comparisons))
    write_whole(folder / "rows.csv", rows_csv(rows, runs))
    title = " against ".join(run.name for run in runs)
    lower = of_metrics.LOWER_IS_BETTER
    write_whole(folder / "report.html", report.page(title, rows, runs, comparisons, lower, folder))
    _show(console, rows, runs, comparisons, left_out, folder)
    return folder


def _with_questions(records: list[Record], questions: Path | None) -> list[Record]:
    if questions is None:
        return records
    texts = {str(record.get("question_id")): record.get("question") for record in read_records(questions)}
    return [{**record, "question": texts.get(str(record.get("question_id")))} for record in records]


def _other_answers(
    path: Path, rows: list[Row], truth: list[Record] | None, columns: Columns, partial: bool
) -> list[Answer]:
    """The other run's answers to the same rows."""
    other, answers, _ = join(read_records(path), truth, columns, partial)
    by_id = {row.id: answer for row, answer in zip(other, answers, strict=True)}
    missing = [row.id for row in rows if row.id not in by_id]
    if missing or len(by_id) != len(rows):
        raise ScoreError(
            f"--against {path} answers {len(by_id)} rows, the predictions {len(rows)}, and {len(missing)} of these are "
            f"not among them{': ' + ', '.join(missing[:5]) if missing else ''}; give two files for the same rows"
        )
    return [by_id[row.id] for row in rows]


def _score(
    name: str, rows: list[Row], answers: list[Answer], names: list[str], models: Models, console: Console
) -> report.Run:
    scores = {}
    for metric in names:
        with console.status(f"{metric} of {name}"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                scores[metric] = METRICS[metric](rows, answers, models)
            except ValueError as error:
                raise ScoreError(f"{metric}: {error}") from error
        for text in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
            console.print(f"{metric}: {text}", style="yellow", highlight=False, markup=False)
    return report.Run(name, [answer.text for answer in answers], [answer.failed for answer in answers], scores)


def _folders(image_dir: Path | None, *files: Path | None) -> list[Path]:
    if image_dir is not None:
        return [image_dir]
    return [Path(), *(file if file.is_dir() else file.parent for file in files if file is not None)]


def _find_image(row: Row, folders: list[Path]) -> Row:
    """The row with its image as a path from here, if the file is there; a name may lack its ending."""
    if row.image is None:
        return row
    for folder in folders:
        for ending in ("", ".jpg", ".jpeg", ".png", ".webp"):
            for name in (row.image, Path(row.image).name):
                path = folder / (name + ending)
                if path.is_file():
                    return replace(row, image=str(path))
    return row


def _title(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _show(
    console: Console,
    rows: list[Row],
    runs: list[report.Run],
    comparisons: report.Comparisons,
    left_out: dict[str, list[str]],
    folder: Path,
) -> None:
    table = Table("metric", *(run.name for run in runs), *(["difference by row", "p"] if comparisons else []))
    for name in runs[0].scores:
        cells = []
        for run in runs:
            (low, high), value = run.scores[name].interval, run.scores[name].value
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        if comparisons:
            c = comparisons[name]
            cells += [f"{c.difference:+.3f} [{c.interval[0]:+.3f}, {c.interval[1]:+.3f}]", f"{c.p_value:.3g}"]
        table.add_row(name, *cells)
    console.print(table)
    for run in runs:
        failed = sum(reason is not None for reason in run.failed)
        if failed:
            console.print(f"{run.name}: {failed:,} of {len(rows):,} rows have no prediction and count as wrong")
    for what, ids in left_out.items():
        if ids:
            console.print(f"{len(ids):,} {what} ids left out, {len(rows):,} rows scored", style="yellow")
    console.print(f"{len(rows):,} rows in {folder}: look at {folder / 'report.html'}", highlight=False, soft_wrap=True)
