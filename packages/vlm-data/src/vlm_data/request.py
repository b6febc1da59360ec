"""What a source is asked to read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm_data.parts import part_files
from vlm_data.schema import DataError


@dataclass(frozen=True)
class Request:
    """A file or folder and how it is to be read.

    path: as the user gave it, so that messages show it so. image_dir: default: the place the source's format implies.
    columns: which of the file's columns are the row's, as `columns.parse` returns it. split: of data that has parts.
    """

    path: Path
    image_dir: str | os.PathLike | None = None
    columns: Mapping[str, str] | None = None
    split: str | None = None

    def files(self, extension: str) -> list[Path]:
        """The file, or those directly in the folder with this extension, sorted; of the split, if they are named so.

        Raises DataError if there are none, or a link among them leads out of the folder.
        """
        if not self.path.is_dir():
            return [self.path]
        found = [path for path in sorted(self.path.glob(f"*{extension}")) if path.is_file()]
        found = part_files(found).get(self.split or "train", found)
        if not found:
            raise DataError(f"{self.path}: there are no {extension} files in it")
        for path in found:
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise DataError(f"{path} leads out of its folder; give that file itself")
        return found

    def without_image_dir(self) -> Path:
        """The path, of a source that knows where its images are. Raises DataError if it is told something else."""
        if self.image_dir is not None:
            raise DataError(f"{self.path}: this folder is the image folder; leave image_dir out")
        return self.path
