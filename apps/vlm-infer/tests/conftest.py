"""A small table of pictures, and the command in this process."""

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vlm_infer import cli

COLORS = ("red", "blue", "green", "yellow")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """`photos/0.png` ... `photos/3.png`, one that is broken, and tables of 12 questions about the four."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "photos" / "deep").mkdir(parents=True)
    for number, color in enumerate(COLORS):
        place = "photos/deep" if number == 3 else "photos"
        Image.new("RGB", (32, 32), color).save(folder / place / f"{number}.png")
    questions = [
        [f"{number}.png", f"what is {what}?", color]
        for what in ("this", "the color", "the shape")
        for number, color in enumerate(COLORS)
    ]
    _table(folder / "questions.csv", [["image_name", "question", "answer"], *questions])
    broken = [*questions[:5], ["broken.png", "why?", "so"], *questions[5:]]
    _table(folder / "broken.csv", [["image_name", "question", "answer"], *broken])
    (folder / "photos" / "broken.png").write_bytes(b"not a picture")
    return folder


def _table(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def command(pictures, tmp_path) -> Callable[..., Result]:
    """`vlm-infer` with these arguments, in a new folder, with the pictures' one as `pictures`."""
    (tmp_path / "pictures").symlink_to(pictures)

    def run(*arguments: str | Path) -> Result:
        with contextlib.chdir(tmp_path):
            result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
