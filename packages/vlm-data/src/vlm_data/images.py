"""From the bytes of an image file to an upright RGB picture of 8 bits a channel, or an error that says what is wrong.

Pillow's process-wide switches (`MAX_IMAGE_PIXELS`, `LOAD_TRUNCATED_IMAGES`) are neither read nor set here.
"""

import hashlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 89_478_485  # Pillow's own default: 1 GiB / 4 / 3, a quarter of a gibibyte as RGB
MAX_RATIO = 200  # of the longer to the shorter side; more than that is refused by Qwen2-VL's resizing too

# No EPS (it would start Ghostscript) and none of Pillow's other rare formats.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")

# How files that only claim to be images often begin.
_IMPOSTORS = {b"%pdf": "a PDF", b"version https://git-lfs": "a Git LFS pointer", b"{": "JSON text", b"<": "XML text"}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")

ImageLike = dict | str | os.PathLike | bytes | Image.Image


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says what was found."""


def looks_like_image(name: str) -> bool:
    """Whether a file name has the extension of an image, in either case."""
    return name.lower().endswith(EXTENSIONS)


def decode(image: ImageLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB, upright and fully decoded.

    image: a row's {"path", "bytes"}, a path, the bytes of a file, or a Pillow image (which is left as it is).
    max_pixels: more than this is refused before decoding; beyond twice Pillow's own limit Pillow refuses by itself.

    The EXIF orientation is applied; transparency is laid on white; of an animation the first frame is taken.
    Greyscale deeper than 8 bits is scaled, not clipped: 16 bits by 1/257; 32-bit integers likewise if they all lie in
    0..65535, else from their minimum..maximum; floats by 255 if they all lie in 0..1, else from their minimum..maximum.
    The result carries no metadata, so nothing can rotate it a second time.

    Raises ImageError for a file that is missing, empty, cut off, damaged or not an image, for too many pixels,
    and for sides of a ratio above 200.
    """
    if isinstance(image, Image.Image):
        return _checked_rgb(image, f"{image.mode} image", max_pixels)
    data, name = _read(image)
    with _opened(data, name) as picture:
        return _checked_rgb(picture, name, max_pixels)


def size_of(image: ImageLike) -> tuple[int, int]:
    """(width, height) in pixels of the picture that `decode` gives, from the file's header but of a TIFF.

    An orientation that a PNG tells behind its pixels is not seen. Raises ImageError for what cannot be opened; damage
    to the pixels shows in `decode` only.
    """
    if isinstance(image, Image.Image):
        return image.size
    data, name = _read(image)
    with _opened(data, name) as picture:
        if (
            picture.format == "TIFF"
        ):  # of which Pillow's versions differ in whether the size is that of the upright picture
            return _checked_rgb(picture, name, MAX_PIXELS).size
        if picture.format == "PNG" and "exif" not in picture.info:  # Pillow would decode it to look behind the pixels
            return picture.size
        try:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # a damaged EXIF block, see _upright
            turned = False
        return picture.size[::-1] if turned else picture.size


def pixel_key(picture: Image.Image) -> str:
    """SHA-256 (hex) of a decoded picture: equal for one picture in any lossless format, whatever its metadata."""
    return hashlib.sha256(b"%d %d " % picture.size + picture.tobytes()).hexdigest()


def content_key(image: dict | str | os.PathLike | bytes) -> str:
    """SHA-256 (hex) of the file's bytes: equal for copies of one file under any names."""
    return hashlib.sha256(_read(image)[0]).hexdigest()


def _read(image: dict | str | os.PathLike | bytes) -> tuple[bytes, str]:
    """The bytes of an image and the name to give it in messages."""
    path, data = image, None
    if isinstance(image, bytes):
        path, data = None, image
    elif isinstance(image, dict):
        path, data = image.get("path"), image.get("bytes")
    name = str(path) if path is not None else "image without a path"
    if data is None:
        if path is None:
            raise ImageError("image has neither a path nor bytes")
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for ever
                raise ImageError(f"{name} is no file")
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}") from error
    return data, name


def _opened(data: bytes, name: str) -> Image.Image:
    """Its header read; not decoded yet."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has too many pixels ({error})") from error
    except Exception as error:  # plugins raise many kinds on bytes that are not theirs
        raise ImageError(f"{name} {_describe(data)}") from error


def _describe(data: bytes) -> str:
    """What bytes that Pillow cannot open are."""
    if not data:
        return "is empty"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<") and b"html" in head:
        return "is HTML text, not an image"
    for start, kind in _IMPOSTORS.items():
        if head.startswith(start):
            return f"is {kind}, not an image"
    if data.startswith(_SIGNATURES):
        return "is cut off or damaged"
    return f"is not an image of a known format (it begins with {data[:8]!r})"


def _checked_rgb(picture: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = picture.size
    if min(width, height) == 0:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"{name} has more pixels than the limit of {max_pixels:,} ({width}x{height})")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"{name} is {width}x{height}: the sides' ratio is above {MAX_RATIO}")
    try:
        picture.load()
    except Exception as error:
        state = "cut off" if "truncated" in str(error) else "damaged"
        raise ImageError(f"{name} is {state} ({error})") from error
    try:
        rgb = _rgb(_upright(picture))
    except (ValueError, OSError) as error:
        raise ImageError(f"{name} cannot be turned into RGB ({error})") from error
    rgb.info = {}
    return rgb


def _upright(picture: Image.Image) -> Image.Image:
    try:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return picture  # most are; Pillow would make a copy
        return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged EXIF block says nothing against the pixels
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if picture.mode == "La":  # Pillow converts premultiplied grey to LA only
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits or floats as mode L (see `decode`); a PNG's transparent grey value becomes white."""
    grey = np.asarray(picture).astype(np.float64)
    finite = grey[np.isfinite(grey)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    standard = 1.0 if picture.mode == "F" else 65535.0
    if low >= 0 and high <= standard:
        low, high = 0.0, standard
    scaled = (np.clip(grey, low, high) - low) / (high - low or 1) * 255
    if "transparency" in picture.info:
        scaled[grey == picture.info["transparency"]] = 255
    return Image.fromarray(np.rint(np.nan_to_num(scaled)).astype(np.uint8))
