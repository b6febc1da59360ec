"""One command, from its options to its results."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import typer
from rich.console import Console

from vlm_data import Rejected
from vlm_infer import job
from vlm_infer.answering import Answerer
from vlm_infer.engines import Engine, Local, RayWorkers
from vlm_infer.errors import InferError
from vlm_infer.generation import Generation
from vlm_infer.journal import Journal
from vlm_infer.model import ModelSpec
from vlm_infer.output import check_official, show
from vlm_infer.processes import Processes
from vlm_infer.results import FIRST, Outputs, Settings, Summary, failures, nothing
from vlm_infer.rows import Inputs, Rows, open_rows
from vlm_infer.scoring import score

STATUS = Console(stderr=True)


def infer(
    spec: ModelSpec,
    inputs: Inputs,
    outputs: Outputs,
    generation: Generation,
    batch_size: int | None,
    engine: str,
    workers: int | None,
) -> None:
    """See the command's help. Raises `InferError`, and the errors of the packages."""
    processes = Processes.of_environment()
    if processes.count > 1 and (outputs.out is None or engine == "ray"):
        raise InferError("several processes need --out, where their texts meet, and --engine local")
    spec = replace(spec, device=processes.device(spec.device))
    with STATUS.status(f"reading {inputs.place}"):
        rows, unread = open_rows(inputs)
        if outputs.out is not None and outputs.out.suffix == ".json":
            check_official(outputs.out, rows)

    @cache
    def make_engine() -> Engine:
        with STATUS.status(f"loading {spec.model}"):
            options = spec, generation, batch_size, outputs.attention
            made = RayWorkers(*options, workers) if engine == "ray" else Local(Answerer(*options))
        if outputs.attention is not None:
            outputs.attention.mkdir(parents=True, exist_ok=True)
        return made

    if outputs.out is None:
        _to_terminal(make_engine, rows, unread, outputs.report)
    else:
        _to_file(make_engine, rows, unread, outputs, _settings(spec, inputs, rows, generation), processes)


def _settings(spec: ModelSpec, inputs: Inputs, rows: Rows, generation: Generation) -> Settings:
    """What the texts depend on, as JSON."""
    asked = {"question": inputs.question, "columns": inputs.columns}
    return {**spec.settings(), "data": rows.fingerprint, "rows": len(rows), **asked, **asdict(generation)}


def _to_terminal(make_engine: Callable[[], Engine], rows: Rows, unread: list[Rejected], report: Path | None) -> None:
    records = job.in_memory(make_engine(), rows)
    left_out = [*unread, *failures(records)]
    texts = [record for record in records if record["text"] is not None]
    if not texts:
        raise nothing(left_out)
    show(texts)
    for name, one in score(records).items():
        print(f"{name} {one.value:.3f} [{one.interval[0]:.3f}, {one.interval[1]:.3f}] of {len(one.per_sample):,} rows")
    if report is not None:
        from vlm_infer.gallery import SHOWN, write_page

        write_page(report, "texts", records[:SHOWN], rows)
        print(f"report in {report}")
    _tell_left_out([record.as_dict() for record in left_out[:FIRST]], len(left_out), None)


def _to_file(
    make_engine: Callable[[], Engine],
    rows: Rows,
    unread: Sequence[Rejected],
    outputs: Outputs,
    settings: Settings,
    processes: Processes,
) -> None:
    if outputs.overwrite:
        make_engine()  # what was done before is kept until the model is known to load
        if processes.first:
            outputs.clear()
    summary = outputs.before(settings) if processes.first else None
    processes.meet()
    if not processes.first:
        summary = outputs.before(settings)
    if summary is not None:
        if processes.first:
            print("this was done before; to do it again give --overwrite")
            _tell(summary, outputs)
        return
    try:
        mine = processes.share(len(rows))
        journal = Journal(outputs.parts, settings, processes.rank)
        rate = job.on_disk(make_engine, rows, mine, journal)
    except KeyboardInterrupt:
        typer.secho(f"interrupted; {outputs.parts} keeps what is done, the same command goes on", err=True)
        raise typer.Exit(130) from None
    processes.meet()
    if processes.first:
        with STATUS.status(f"writing {outputs.out}"):
            summary = outputs.finish(settings, rows, unread)
        _tell(summary, outputs, rate)


def _tell(summary: Summary, outputs: Outputs, rate: float = 0.0) -> None:
    skipped = f", {summary['left_out']} rows skipped" if summary["left_out"] else ""
    speed = f" ({rate:.1f} rows/s)" if rate else ""
    print(f"{summary['texts']} texts in {outputs.out}{speed}{skipped}")
    for name, one in summary["scores"].items():
        low, high = one["interval"]
        print(f"{name} {one['value']:.3f} [{low:.3f}, {high:.3f}] of {one['rows']:,} rows")
    if outputs.report is not None and outputs.report.exists():
        print(f"look at {outputs.report}")
    if outputs.out.suffix in (".csv", ".jsonl", ".json"):
        own = [] if summary["references"] and outputs.out.suffix != ".json" else ["--references", "FILE"]
        print("next:\n  " + shlex.join(["vlm-score", str(outputs.out), *own]))
    _tell_left_out(summary["first_left_out"], summary["left_out"], outputs.rejected)


def _tell_left_out(first: list[dict[str, str]], count: int, place: Path | None) -> None:
    for record in first:
        typer.secho(f"skipped {record['source']}: {record['reason']}", fg="yellow", err=True)
    if count > len(first):
        typer.secho(f"and {count - len(first)} more" + (f", in {place}" if place else ""), fg="yellow", err=True)
