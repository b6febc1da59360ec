"""easy-VQA: 48,248 questions about 5,000 drawings of a shape (Victor Zhou, 2019), from the `easy-vqa` distribution."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from vlm_data.schema import DataError

SPLITS = ("train", "test")


def read(split: str) -> Iterator[dict]:
    """The 38,575 "train" or 9,673 "test" rows, in the order of the distribution."""
    if split not in SPLITS:
        raise DataError(f"easy-vqa has no split {split!r}; its splits are {' and '.join(SPLITS)}")
    folder = _data_folder() / split
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    for index, (question, answer, image) in enumerate(questions):
        yield {
            "id": f"easy-vqa-{split}-{index}",
            "image": {"path": str(folder / "images" / f"{image}.png"), "bytes": None},
            "prompt": question,
            "references": [answer],
            "source": f"easy-vqa/{split}/questions.json[{index}]",
        }


def _data_folder() -> Path:
    spec = find_spec("easy_vqa")  # found, not imported: importing runs code that we have no use for
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise DataError("easy-vqa is not installed; run: pip install 'vlm-data[samples]'")
    return folder
