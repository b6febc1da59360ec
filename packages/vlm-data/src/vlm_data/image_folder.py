"""Find the image that a table names, inside one folder and nowhere else.

A name is looked up as given, then as ABO stores it (`ab/abc.jpg` for `abc.jpg`), then anywhere below the folder. If no
file there has it as given, it may differ in case and in how accents are encoded (macOS stores `é` as two characters).
Where no file has a `\\` in its name, that stands for `/`.
"""

import bisect
import difflib
import os
import unicodedata
from functools import cached_property, lru_cache
from pathlib import Path

from vlm_data.schema import BadRow, DataError

_HINTS = 100  # missing images for which the nearest names are given


def files_below(folder: Path) -> list[str]:
    """Paths of all files below the folder, relative and sorted; hidden ones left out, linked folders not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in files if not name.startswith(".")]
    return sorted(found)


class ImageFolder:
    """The images below one folder. Raises DataError if the folder does not exist.

    search: whether to look for a name anywhere below, for which all names are listed; else it is where it says.
    """

    def __init__(self, root: str | os.PathLike, search: bool = True) -> None:
        self._search = search
        self.root = Path(os.path.abspath(root))
        if not self.root.is_dir():
            raise DataError(f"{root}: no such image folder; give the images' folder as image_dir")
        self._real_root = os.path.realpath(root)
        self._hints_left = _HINTS
        # A table names most images several times, mostly near each other.
        self._find = lru_cache(maxsize=65536)(self._find)

    def find(self, *names: str) -> str:
        """Absolute path of the first name that exists. Raises BadRow with the reason if there is no safe one."""
        return self._find(names)

    def inside(self, path: str) -> str:
        """The path itself. Raises BadRow if it leads out of the folder: by `..`, as an absolute path, or by a link."""
        real = os.path.realpath(path)
        if not Path(real).is_relative_to(self._real_root):
            raise BadRow(f"image {path!r} leaves the image folder (it leads to {real})")
        return path

    def _find(self, names: tuple[str, ...]) -> str:
        names = (*names, *(name.replace("\\", "/") for name in names if "\\" in name))
        for name in names:
            if not name or "\0" in name or not _is_file_name(name):
                raise BadRow(f"image name is {'empty' if not name else 'broken'}")
            places = [name, os.path.join(name[:2], name)] if name[:2].isalnum() else [name]
            for place in places:
                path = self.inside(os.path.join(self.root, place))
                if os.path.isfile(path):
                    return os.path.normpath(path)
        if not self._search:
            raise BadRow(f"image not found: {self.root / names[0]}")
        for name in names:
            absolute = [str(self.root / match) for match in self._matches(name)]
            paths = list({os.path.realpath(path): path for path in absolute}.values())  # links to one file count once
            if len(paths) > 1:
                raise BadRow(f"image {name!r} is ambiguous: {paths[0]} and {paths[1]}")
            if paths:
                return self.inside(paths[0])
        raise BadRow(f"image not found: {self.root / names[0]}{self._nearest(os.path.basename(names[0]))}")

    def _matches(self, name: str) -> list[str]:
        named = self._by_name.get(_folded(os.path.basename(name)), ())
        found = [path for path in named if _same_tail(_folded(path), _folded(name))]
        return [path for path in found if _same_tail(path, name)] or found

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The files by their folded names."""
        paths = {}
        for path in files_below(self.root):
            paths.setdefault(_folded(os.path.basename(path)), []).append(path)
        return paths

    @cached_property
    def _names(self) -> list[str]:
        return sorted({os.path.basename(path) for paths in self._by_name.values() for path in paths})

    def _nearest(self, name: str) -> str:
        # Alphabetical neighbours only: comparing with each of 100,000 files would take a second for each missing one.
        self._hints_left -= 1
        if self._hints_left < 0:  # not one name is wrong, but the folder
            return ""
        at = bisect.bisect(self._names, name)
        near = difflib.get_close_matches(name, self._names[max(0, at - 50) : at + 50])
        return f" (nearest: {', '.join(near)})" if near else ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_file_name(name: str) -> bool:
    """Whether a file can have the name; JSON's "\\ud800" is not even Unicode."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _same_tail(path: str, name: str) -> bool:
    """Whether one path ends with the other, so that `val/1.jpg` never stands in for a missing `train/1.jpg`."""
    pairs = zip(reversed(Path(path).parts), reversed(Path(os.path.normpath(name)).parts), strict=False)
    return all(ours == theirs for ours, theirs in pairs)
