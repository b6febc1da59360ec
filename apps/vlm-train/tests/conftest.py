"""What a user has: pictures and a table of captions."""

import csv
from pathlib import Path

import pytest

import vlm_data


@pytest.fixture(scope="session")
def captions(tmp_path_factory) -> Path:
    """A folder with `captions.csv`, of 37 pictures beside it."""
    folder = tmp_path_factory.mktemp("captions")
    rows = [row for row in vlm_data.open("scenes", split="train", size=40) if row["prompt"] is None]
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_name", "caption"])
        for row in rows:
            vlm_data.decode(row["image"]).save(folder / f"{row['id']}.png")
            table.writerow([f"{row['id']}.png", row["references"][0]])
    return folder
