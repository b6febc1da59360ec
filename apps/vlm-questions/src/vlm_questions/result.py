"""What is left behind: the table, its report, the rows left out; and what to do next."""

import json
import shlex
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from vlm_data import Rejected, generate
from vlm_questions.errors import QuestionsError
from vlm_questions.make import Made, replies_file


def finish(out: Path, made: Made, images: int, rejected: list[Rejected], image_dir: Path) -> None:
    """Write everything beside `out`, and say so. Raises QuestionsError if there is no question."""
    left_out = [*rejected, *made.unanswered]
    if left_out:
        lines = [json.dumps(record.as_dict(), ensure_ascii=False) + "\n" for record in left_out]
        out.with_suffix(".rejected.jsonl").write_text("".join(lines), encoding="utf-8")
    else:
        out.with_suffix(".rejected.jsonl").unlink(missing_ok=True)
    if not made.questions:
        first = f"; the first image without a reply: {left_out[-1].reason}" if made.unanswered else ""
        raise QuestionsError(f"no usable question: dropped {dict(made.dropped) or 'none'}{first}")
    types = generate.report(made.questions)
    counts = {"images": images, "questions": len(made.questions), "rejected": len(rejected)}
    report = {**counts, "unanswered": len(made.unanswered), "dropped": dict(made.dropped), "types": types}
    generate.write_questions(out, made.questions)
    generate.write_report(out.with_suffix(".report.json"), report)
    _show(types)
    for reason, count in made.dropped.most_common():
        typer.secho(f"dropped {count}: {reason}", fg="yellow", err=True)
    if rejected:
        typer.secho(
            f"left out {len(rejected)} rows, the first: {rejected[0].source}: {rejected[0].reason}",
            fg="yellow",
            err=True,
        )
    if made.unanswered:
        what = f"{len(made.unanswered)} images have no reply, the first: {made.unanswered[0].reason}"
        typer.secho(f"{what}\nrun the same command again to ask about these only", fg="yellow", err=True)
    asked = len({question.image_name for question in made.questions})
    print(f"{len(made.questions)} questions about {asked} images in {out}; report in {out.with_suffix('.report.json')}")
    if replies_file(out).exists():
        print(f"replies in {replies_file(out)}; what is in there is not asked again")
    if left_out:
        print(f"rows and images left out in {out.with_suffix('.rejected.jsonl')}")
    print("next:\n  " + shlex.join(["vlm-train", "--data", str(out), "--image-dir", str(image_dir)]))


def _show(types: dict[str, dict]) -> None:
    table = Table("type", "questions", "answers", "most frequent", "its share")
    for kind, one in types.items():
        first = ", ".join(list(one["most_frequent"])[:3])
        table.add_row(kind, str(one["questions"]), str(one["answers"]), first, f"{one['share_of_first']:.0%}")
    Console().print(table)
