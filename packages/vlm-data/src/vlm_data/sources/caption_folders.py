"""A folder of captions beside a folder of images: `caption/dog.txt` is said of every image in `Image/dog/`.

A `caption/dog.json` holds one caption for each of those images: {"1": "…", "2": "…"} or a list.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from vlm_data.columns import as_text
from vlm_data.image_folder import ImageFolder
from vlm_data.images import looks_like_image
from vlm_data.request import Request
from vlm_data.schema import BadRow, DataError, Rejected
from vlm_data.text_files import read_json, read_text

_CAPTIONS, _IMAGES = ("caption", "captions"), ("image", "images")


def parts(folder: Path) -> tuple[str, str] | None:
    """Names of the two sub-folders, or None if the folder is none of this kind."""
    names = {name.lower(): name for name in sorted(os.listdir(folder)) if (folder / name).is_dir()}
    captions, images = (next((names[name] for name in pair if name in names), None) for pair in (_CAPTIONS, _IMAGES))
    return (captions, images) if captions and images else None


def read(asked: Request) -> Iterator[dict | Rejected]:
    """A row for each image that has a caption; a caption file without images, or the reverse, is rejected."""
    folder = asked.without_image_dir()
    found = parts(folder)
    if found is None:
        raise DataError(f"{folder}: needed in it: caption/NAME.txt or .json, and the images in Image/NAME/")
    captions, images = folder / found[0], ImageFolder(folder)
    for name in found:
        try:
            images.inside(str(folder / name))
        except BadRow as error:
            raise DataError(f"{folder}: {error}") from error
    files = sorted(path for path in captions.iterdir() if path.suffix.lower() in (".txt", ".json"))
    for file in files:
        try:
            images.inside(str(file))
            yield from _rows(file, images, found[1])
        except (BadRow, DataError) as error:
            yield Rejected(str(file), str(error).removeprefix(f"{file}: "))
    known = {file.stem for file in files}
    for name in sorted(os.listdir(folder / found[1])):
        if not name.startswith(".") and name not in known:
            yield Rejected(str(folder / found[1] / name), f"no caption: {captions / name}.txt is missing")


def _rows(file: Path, images: ImageFolder, below: str) -> Iterator[dict | Rejected]:
    place = os.path.join(below, file.stem)
    path = Path(images.inside(str(images.root / place)))
    if not path.is_dir():
        raise BadRow(f"no folder of its images: {path}")
    names = sorted(name for name in os.listdir(path) if looks_like_image(name) and not name.startswith("."))
    if not names:
        raise BadRow(f"no images in {path}")
    for name, caption in zip(names, _captions(file, names), strict=True):
        try:
            image = {"path": images.inside(str(path / name)), "bytes": None}
        except BadRow as error:
            yield Rejected(str(file), str(error))
        else:
            yield {
                "id": Path(place, name).as_posix(),
                "image": image,
                "prompt": None,
                "references": [caption],
                "source": str(file),
            }


def _captions(file: Path, names: list[str]) -> list[str]:
    """The caption of each image."""
    if file.suffix.lower() == ".txt":
        captions = [read_text(file).strip()] * len(names)
    else:
        content = read_json(file)
        stems = [Path(name).stem for name in names]
        if isinstance(content, dict) and content.keys() == set(stems):
            content = [content[stem] for stem in stems]
        values = list(content.values()) if isinstance(content, dict) else content
        if not isinstance(values, list) or len(values) != len(names):
            count = len(values) if isinstance(values, list) else "no"
            raise BadRow(f"{count} captions for {len(names)} images; needed: one for each, in the order of their names")
        captions = [as_text(value, "caption") for value in values]
    if not all(captions):
        raise BadRow("caption is empty")
    return captions
