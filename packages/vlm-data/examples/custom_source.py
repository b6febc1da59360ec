"""A source of one's own: Flickr8k's list of captions, `photo.jpg#0<tab>a caption`, several lines for a photo."""

from collections import defaultdict
from pathlib import Path

from datasets import Dataset
from PIL import Image

import vlm_data


def flickr8k(file: Path, photos: Path) -> Dataset:
    """A row for each photo, in the order of the file, with all of its captions."""
    captions, first = defaultdict(list), {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        photo, caption = line.split("\t")
        name = photo.rpartition("#")[0]
        captions[name].append(caption)
        first.setdefault(name, f"{file}:{number}")  # what error messages name
    rows = [
        {
            "id": name,
            "image": {"path": str(photos / name), "bytes": None},  # decoded late
            "prompt": None,  # no question: it is captioned
            "references": captions[name],
            "source": first[name],
        }
        for name in captions
    ]
    return Dataset.from_list(rows, features=vlm_data.FEATURES)


if __name__ == "__main__":
    for name in ("red", "blue", "green"):
        Image.new("RGB", (64, 64), name).save(f"{name}.jpg")
    lines = "red.jpg#0\ta red square\nred.jpg#1\tsomething red\nblue.jpg#0\ta blue square\n"
    Path("captions.txt").write_text(f"{lines}green.jpg#0\ta green square\ngone.jpg#0\ta missing photo\n")
    rows = vlm_data.verify(flickr8k(Path("captions.txt"), Path()), rejected := [])
    train, validation = vlm_data.split(rows, val_fraction=0.3)
    print(f"{len(train)} and {len(validation)} rows; left out: {rejected[0].source}: {rejected[0].reason}")
