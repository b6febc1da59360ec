"""COCO captions: {"images": [{id, file_name}], "annotations": [{image_id, caption}]}."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_data import json_file
from vlm_data.columns import as_text
from vlm_data.image_folder import ImageFolder
from vlm_data.request import Request
from vlm_data.schema import BadRow, DataError, Rejected


def matches(content: dict) -> bool:
    return "images" in content and "annotations" in content


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each image, with all its captions (in COCO mostly five) as references."""
    path = asked.path
    content = json_file.content(path)
    if not isinstance(content, dict) or not matches(content):
        raise DataError(f"{path}: needed: an object with images and annotations, as COCO captions have them")
    described = json_file.objects(content["images"], "images", path)
    captions: dict[Any, list] = {}
    for annotation in json_file.objects(content["annotations"], "annotations", path):
        captions.setdefault(key_of(annotation.get("image_id")), []).append(annotation.get("caption"))
    if captions and all(value is None for values in captions.values() for value in values):
        raise DataError(f"{path}: its annotations hold no captions; give the file of captions")
    images = ImageFolder(asked.image_dir or image_root(path))
    for image in described:
        name = image.get("id")
        source = f"{path}: image {name}"
        try:
            texts = [as_text(caption, "caption") for caption in captions.pop(key_of(name), ())]
            references = [text for text in texts if text]
            if not references:
                raise BadRow("no caption")
            file_name = image.get("file_name")
            if not isinstance(file_name, str):
                raise BadRow("it has no file_name")
            found = {"path": images.find(file_name), "bytes": None}
        except BadRow as error:
            yield Rejected(source, str(error))
        else:
            yield {
                "id": f"{path.stem}-{name}",
                "image": found,
                "prompt": None,
                "references": references,
                "source": source,
            }
    for name, left in captions.items():
        yield Rejected(f"{path}: image {name}", f"not among the images, but has {len(left)} captions")


def key_of(value: Any) -> Any:
    """An id that can be looked up; ids are numbers or texts, anything else is as good as none."""
    return value if isinstance(value, str | int) else None


def image_root(path: Path) -> Path:
    """Where the images of an annotation file are: COCO and VQA keep `annotations/` beside the images' folders."""
    folder = path.absolute().parent
    return folder.parent if folder.name.lower() in ("annotations", "questions") else folder
