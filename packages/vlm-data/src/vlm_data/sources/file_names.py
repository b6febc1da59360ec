"""Captions from file names: `a_red-car.jpg` is captioned "a red car"."""

from collections.abc import Iterator
from pathlib import Path

from vlm_data.image_folder import ImageFolder, files_below
from vlm_data.images import looks_like_image
from vlm_data.request import Request
from vlm_data.schema import BadRow, Rejected


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each image below the folder, sorted by path; the caption is the name up to its last dot."""
    folder = asked.without_image_dir()
    images = ImageFolder(folder)
    for name in filter(looks_like_image, files_below(folder)):
        path = images.root / name
        caption = " ".join(path.stem.replace("_", " ").replace("-", " ").split())
        try:
            if not caption:
                raise BadRow("the file name holds no caption")
            image = {"path": images.inside(str(path)), "bytes": None}
        except BadRow as error:
            yield Rejected(str(folder / name), str(error))
        else:
            yield {
                "id": Path(name).as_posix(),
                "image": image,
                "prompt": None,
                "references": [caption],
                "source": str(folder / name),
            }
