"""Every kind of image file that people have, in one table: each is the right picture or a rejected row with its reason.

What the pictures look like is tested file by file in test_data_images.py; here it is that none is missed.
"""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

import vlm_data

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """A PNG whose header declares a size; it is small whatever that is."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", (20, 10), RED), "JPEG", exif=exif)


def palette(index):
    picture = Image.new("P", (10, 10), index)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(picture, transparency=1)


RGB = Image.new("RGB", (10, 10), RED)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BLUE = Image.new("RGB", (10, 10), "blue")
LAB = ImageCms.profileToProfile(RGB, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")

PICTURES = {  # file name: (content, size, colour of the middle)
    **{f"exif-{n}.jpg": (turned(n), (20, 10) if n < 5 else (10, 20), RED) for n in range(1, 9)},
    "rgba.png": (encoded(Image.new("RGBA", (10, 10), (*RED, 255))), (10, 10), RED),
    "rgba-hidden.png": (encoded(Image.new("RGBA", (10, 10), (*RED, 0))), (10, 10), WHITE),
    "la-hidden.png": (encoded(Image.new("LA", (10, 10), (0, 0))), (10, 10), WHITE),
    "p.png": (palette(0), (10, 10), RED),
    "p-hidden.png": (palette(1), (10, 10), WHITE),
    "i16.png": (encoded(Image.fromarray(np.full((10, 10), 257 * 100, np.uint16))), (10, 10), (100, 100, 100)),
    "cmyk.jpg": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), (16, 16), RED),
    "lab.tiff": (encoded(LAB, "TIFF"), (10, 10), RED),
    "bilevel.png": (encoded(Image.new("1", (10, 10), 1)), (10, 10), WHITE),
    "animated.gif": (encoded(RGB, "GIF", save_all=True, append_images=[BLUE]), (10, 10), RED),
    "animated.webp": (encoded(RGB, "WEBP", save_all=True, append_images=[BLUE], lossless=True), (10, 10), RED),
    "animated.png": (encoded(RGB, "PNG", save_all=True, append_images=[BLUE]), (10, 10), RED),
    "one-pixel.png": (encoded(Image.new("RGB", (1, 1), RED)), (1, 1), RED),
    "ratio-200.png": (encoded(Image.new("RGB", (2000, 10), RED)), (2000, 10), RED),
    "really-a-png.jpg": (encoded(RGB), (10, 10), RED),
    "UPPER.JPEG": (encoded(RGB, "JPEG"), (10, 10), RED),
}
REJECTED = {  # file name: (content, reason)
    "cut.jpg": (encoded(NOISE, "JPEG")[:900], "is cut off"),
    "cut.png": (encoded(NOISE)[:5000], "is cut off"),
    "cut-in-the-header.png": (encoded(RGB)[:12], "is cut off or damaged"),
    "empty.jpg": (b"", "is empty"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "is HTML text, not an image"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "bomb.png": (png_of_size(10_000, 10_000), "more pixels than the limit"),  # between one and two times Pillow's limit
    "big-bomb.png": (png_of_size(20_000, 20_000), "too many pixels"),
    "ratio-201.png": (encoded(Image.new("RGB", (2010, 10))), "the sides' ratio is above 200"),
    "pipe.jpg": (None, "is no file"),
}


@pytest.fixture
def zoo(tmp_path):
    for name, (content, *_) in {**PICTURES, **REJECTED}.items():
        if content is None:
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "zoo.csv").write_text("".join(f"{name},{name}\n" for name in [*PICTURES, *REJECTED]))
    return tmp_path


def test_every_file_is_a_picture_or_a_rejected_row(zoo, recwarn):
    before = [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES]
    rejected = []
    rows = vlm_data.verify(vlm_data.open(zoo, rejected=rejected), rejected)
    assert [references[0] for references in rows["references"]] == list(PICTURES)
    for row in rows:
        name = row["references"][0]
        picture = vlm_data.decode(row["image"])
        _, size, colour = PICTURES[name]
        assert (picture.mode, picture.size) == ("RGB", size), name
        middle = picture.getpixel((size[0] // 2, size[1] // 2))
        assert np.abs(np.subtract(middle, colour)).max() <= 5, (name, middle)
    reasons = {
        list({**PICTURES, **REJECTED})[int(record.source.rsplit(":", 1)[1]) - 1]: record.reason for record in rejected
    }
    assert reasons.keys() == REJECTED.keys()
    for name, (_, reason) in REJECTED.items():
        assert reason in reasons[name] and name in reasons[name]
    assert before == [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_pipe_among_images_is_not_waited_for(zoo):
    rejected = []
    rows = vlm_data.open(zoo, format="file-names", rejected=rejected)
    vlm_data.verify(rows, rejected)
    assert [record.reason for record in rejected if "pipe.jpg" in record.source] == [f"{zoo}/pipe.jpg is no file"]
