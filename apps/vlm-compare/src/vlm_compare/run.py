"""A comparison from its cells to its table."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlm_compare import forgetting as forgotten
from vlm_compare.cells import Cell, in_folder
from vlm_compare.page import comparison_page
from vlm_compare.statistics import lines_of, read_outcome
from vlm_compare.tables import cells_of, csv_table, markdown_table
from vlm_compare.training import status_of, train_cell
from vlm_train.adapting.attaching import check_methods
from vlm_train.errors import TrainError
from vlm_train.options.config import TrainConfig
from vlm_train.run import quiet
from vlm_train.rundir import RunDir

LEFT_OUT = ("seeds", "over seeds", "p", "memory", "file")
Failed = list[tuple[str, str]]


def run(
    cells: dict[Cell, TrainConfig],
    baseline: str,
    out: Path,
    forgetting: str | None = None,
    forgetting_rows: int = 500,
    train: Callable[[Cell, TrainConfig, Path], None] = train_cell,
) -> Failed:
    """Train what is not trained yet, and write the table of all that is; returns the cells that failed, and why.

    Raises ConfigError before anything is trained: options that cannot be used, or a folder of other conditions.
    """
    console = Console()
    quiet()
    runs = out / "runs"
    configs = {cell: in_folder(config, str(runs / cell.name)) for cell, config in cells.items()}
    for cell, config in configs.items():
        check_methods(config)
        status_of(runs / cell.name, config)
    failed = _train_all(configs, runs, train, console)
    done = {cell: config for cell, config in configs.items() if status_of(runs / cell.name, config) == "done"}
    if not done:
        return failed
    if forgetting is not None:
        forgotten.measure(done, runs, out / "forgetting", forgetting, forgetting_rows, console)
    outcomes = [read_outcome(cell, runs / cell.name, config.metric) for cell, config in done.items()]
    lines = lines_of(outcomes, baseline, out / "forgetting" if forgetting is not None else None)
    files = RunDir(out)
    first = next(iter(configs.values()))
    title = f"{first.model} on {first.data}: {len(lines)} compared"
    files.write_text("comparison.csv", csv_table(lines))
    files.write_text(
        "comparison.md", f"# {title}\n\n{markdown_table(lines, baseline)}\n" + "\n".join(_notes(forgetting))
    )
    files.write_text("comparison.html", comparison_page(title, lines, baseline, failed, _notes(forgetting)))
    _show(console, *cells_of(lines, baseline))
    for name, reason in failed:
        console.print(f"{name} failed: {reason}", style="red", highlight=False, soft_wrap=True, markup=False)
    best = max(lines, key=lambda line: line.score)
    console.print(f"Look at {out / 'comparison.html'}; the best one's predictions are in", highlight=False)
    console.print(f"  {runs / best.runs[0] / 'report.html'}", highlight=False, soft_wrap=True, markup=False)
    return failed


def _train_all(
    configs: dict[Cell, TrainConfig], runs: Path, train: Callable[[Cell, TrainConfig, Path], None], console: Console
) -> Failed:
    waiting = [cell for cell, config in configs.items() if status_of(runs / cell.name, config) != "done"]
    if len(waiting) < len(configs):
        console.print(f"{len(configs) - len(waiting)} of {len(configs)} runs are done already", highlight=False)
    failed: Failed = []
    started = time.monotonic()
    for number, cell in enumerate(waiting):
        minutes = (time.monotonic() - started) / max(number, 1) * (len(waiting) - number) / 60
        left = f", about {minutes:.0f} min left" if number else ""
        console.rule(f"run {number + 1} of {len(waiting)}: {cell.group}, seed {cell.seed}{left}", style="dim")
        try:
            train(cell, configs[cell], runs / cell.name)
        except TrainError as error:
            failed.append((cell.name, str(error)))
            console.print(f"failed: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
    return failed


def _show(console: Console, head: list[str], rows: list[list[str]]) -> None:
    """The columns that fit a terminal; the others are in the files."""
    shown = [place for place, name in enumerate(head) if name not in LEFT_OUT]
    table = Table(*(head[place] for place in shown))
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    console.print(table)


def _notes(forgetting: str | None) -> list[str]:
    notes = [
        "Scores are means over rows and seeds, their intervals and the tests bootstraps and sign flips by image. Tests "
        "are paired: the same rows, seed by seed. Holm's p-values allow for the number of comparisons.",
        "Where one point of a grid is chosen by this table, its score is that of the best of several on the rows it "
        "was chosen by: measure it anew on others.",
    ]
    if forgetting is not None:
        notes.append(f"On other data: {forgetting}, the trained models against their base model.")
    return notes
