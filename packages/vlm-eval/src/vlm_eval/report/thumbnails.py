"""Small pictures as data addresses, within a budget of bytes."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

BUDGET = 18_000_000  # bytes, as they stand in the page
SIZES = ((256, 75), (192, 65), (144, 55), (112, 40))  # longest edge in pixels, quality; the first that fits is taken


def thumbnails(paths: Iterable[str], budget: int = BUDGET) -> dict[str, str]:
    """{path: data address}. The first paths come first: those for which there is no room are left out, as are those
    that cannot be read.

    The size is the largest at which all fit, judged by a sample of them.
    """
    paths = list(dict.fromkeys(paths))
    sample = paths[:: max(1, len(paths) // 40)]
    size = SIZES[-1]
    for size in SIZES:
        lengths = [len(data) for path in sample if (data := _encode(path, *size))]
        if sum(lengths) / max(1, len(lengths)) * len(paths) <= budget:
            break
    made, used = {}, 0
    for path in paths:
        data = _encode(path, *size)
        if data is not None and used + len(data) <= budget:
            made[path] = data
            used += len(data)
    return made


def _encode(path: str, edge: int, quality: int) -> str | None:
    try:
        with Image.open(Path(path)) as file:
            file.draft("RGB", (edge, edge))  # a JPEG is then decoded at a fraction of its size
            picture = ImageOps.exif_transpose(file)
            picture.thumbnail((edge, edge))
            picture = _on_white(picture)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
