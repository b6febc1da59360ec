"""Train, validation and test parts that lie beside each other in one folder."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlm_data.schema import Rejected

# The names that a part's folder or file goes by.
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str | None:
    """The part that a file's name speaks of: `test_captions.csv` is of "test", `train-00000.parquet` of "train"."""
    words = set(re.split(r"[^a-z]+", Path(name).stem.lower()))
    found = [split for split, names in NAMES.items() if words.intersection(names)]
    return found[0] if len(found) == 1 else None


def part_folders(folder: Path) -> dict[str, Path]:
    """The sub-folders that are named as parts, by part; without one for training there are none."""
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {split: path for split, names in NAMES.items() for path in below if path.name.lower() in names}
    return found if "train" in found else {}


def part_files(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files that are named as parts, by part; without one for training there are none."""
    found: dict[str, list[Path]] = {}
    for file in files:
        if (split := split_of(file.name)) is not None:
            found.setdefault(split, []).append(file)
    return found if "train" in found else {}


def shared_table(
    anywhere: Iterable[dict | Rejected], in_train: Iterable[dict | Rejected], folders: dict[str, Path], split: str
) -> Iterator[dict | Rejected]:
    """The items of one part, from a table that names the images of all of them.

    anywhere: its items with images looked up in the whole folder; in_train: the same, in the training images alone.
    A name that is in several parts is the training part's. Rejected rows are reported once, with the training part.
    """
    for item, of_train in zip(anywhere, in_train, strict=True):
        if isinstance(item, Rejected):
            owner, item = "train", of_train if isinstance(of_train, dict) else item
        else:
            path = Path(item["image"]["path"])
            owner = next((name for name, folder in folders.items() if path.is_relative_to(folder.absolute())), None)
            if owner is None:
                names = ", ".join(folder.name for folder in folders.values())
                owner, item = "train", Rejected(item["source"], f"its image is in none of the folders {names}: {path}")
        if owner == split:
            yield item
