"""decode: every kind of image file against the picture it was made from."""

import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from vlm_data import ImageError, content_key, decode
from vlm_data.images import size_of

WHITE = (255, 255, 255)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height=12, width=20, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def png_header_only(width, height):
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# How the stored picture must be made so that a viewer who obeys the tag sees `upright` (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_all_eight_orientations(orientation, format):
    upright = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = encoded(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    picture = decode(data)
    np.testing.assert_array_equal(np.asarray(picture), upright)
    np.testing.assert_array_equal(np.asarray(decode(picture)), upright)  # no tag left that would rotate it again


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_a_broken_exif_block_is_read():
    upright = noise()
    data = encoded(Image.fromarray(upright), exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    np.testing.assert_array_equal(np.asarray(decode(data)), upright)


def test_rgba_is_laid_on_white_by_the_alpha_formula():
    rgba = noise(channels=4)
    rgba[0, 0] = (255, 0, 0, 0)  # hidden red
    rgba[0, 1] = (1, 2, 3, 255)
    result = np.asarray(decode(encoded(Image.fromarray(rgba)))).astype(float)
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(result, alpha * rgba[..., :3] + (1 - alpha) * 255, atol=1)
    assert tuple(result[0, 0]) == WHITE and tuple(result[0, 1]) == (1, 2, 3)


def test_grey_with_alpha_is_laid_on_white():
    grey = Image.new("LA", (2, 1), (40, 0))
    grey.putpixel((1, 0), (40, 255))
    picture = decode(encoded(grey))
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (40, 40, 40)]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_palette_with_transparency_is_laid_on_white(transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    decoded = decode(encoded(picture, transparency=transparency))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), WHITE]


def test_transparent_colours_of_grey_and_rgb_are_laid_on_white():
    grey, rgb = Image.new("L", (2, 1), 7), Image.new("RGB", (2, 1), (7, 8, 9))
    grey.putpixel((1, 0), 70)
    rgb.putpixel((1, 0), (70, 80, 90))
    assert list(decode(encoded(grey, transparency=7)).get_flattened_data()) == [WHITE, (70, 70, 70)]
    assert list(decode(encoded(rgb, transparency=(7, 8, 9))).get_flattened_data()) == [WHITE, (70, 80, 90)]


@pytest.mark.parametrize("mode", ["PA", "RGBa", "La"])
def test_other_modes_with_alpha_in_memory(mode):
    rgba = Image.new("RGBA", (2, 1), (51, 51, 51, 0))
    rgba.putpixel((1, 0), (51, 51, 51, 255))
    if mode == "PA":
        image = rgba.convert("RGB").convert("P")
        image.putalpha(rgba.getchannel("A"))
    else:
        image = rgba.convert("LA" if mode == "La" else "RGBA").convert(mode)
    assert image.mode == mode
    assert [decode(image).getpixel((x, 0)) for x in (0, 1)] == [WHITE, (51, 51, 51)]


def test_opaque_palette():
    picture = Image.fromarray(noise(4, 4)).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(np.asarray(decode(encoded(picture))), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    values = np.array([[0, 128, 129, 257, 300, 32768, 65278, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode(encoded(Image.fromarray(values), format)))
    np.testing.assert_array_equal(decoded[0, :, 0], [round(value / 257) for value in values[0].tolist()])
    assert (decoded[..., 0] == decoded[..., 1]).all() and (decoded[..., 0] == decoded[..., 2]).all()


def test_dark_sixteen_bit_grey_stays_dark():
    values = np.array([[300, 64250]], dtype=np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(values))))[0, :, 0].tolist() == [1, 250]


def test_sixteen_bit_grey_with_a_transparent_value():
    values = np.array([[1000, 30000]], dtype=np.uint16)
    decoded = np.asarray(decode(encoded(Image.fromarray(values), transparency=1000)))
    assert decoded[0, :, 0].tolist() == [255, round(30000 / 257)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 65535], [0, 1, 255]),  # fits 16 bits
        ([0, 100_000, 200_000], [0, 128, 255]),
        ([-100, 0, 100], [0, 128, 255]),
    ],
)
def test_32_bit_integers(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert image.mode == "I"
    assert np.asarray(decode(encoded(image, "TIFF")))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 0.8], [0, 128, 204]),  # 0..1 is not stretched
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([5.0, 10.0, 15.0], [0, 128, 255]),
        ([3.0, 3.0, 3.0], [0, 0, 0]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([float("-inf"), 0.2, float("inf")], [0, 51, 255]),
    ],
)
def test_floats(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert image.mode == "F"
    assert np.asarray(decode(encoded(image, "TIFF")))[0, :, 0].tolist() == expected


def test_cmyk_jpeg():
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = np.asarray(decode(encoded(flat, "JPEG", quality=100)))
    np.testing.assert_allclose(red.reshape(-1, 3), np.tile([255, 0, 0], (256, 1)), atol=3)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
    assert set(decode(data).get_flattened_data()) == {(255, 0, 0)}


def test_every_way_to_give_an_image(tmp_path):
    values = noise()
    data = encoded(Image.fromarray(values))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    ways = [data, path, str(path), {"path": str(path), "bytes": None}, {"path": None, "bytes": data}]
    ways += [{"path": "elsewhere.png", "bytes": data}, Image.fromarray(values)]
    for image in ways:
        picture = decode(image)
        assert picture.mode == "RGB" and type(picture) is Image.Image and picture.info == {}
        np.testing.assert_array_equal(np.asarray(picture), values)


def test_the_result_carries_no_metadata():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    picture = decode(encoded(Image.fromarray(noise()), "JPEG", exif=exif, dpi=(72, 72), comment=b"a comment"))
    assert picture.info == {} and len(picture.getexif()) == 0


def test_a_given_picture_is_left_as_it_is():
    picture = Image.new("RGB", (2, 2), "red")
    picture.info["kept"] = True
    decode(picture).putpixel((0, 0), (0, 0, 0))
    assert picture.getpixel((0, 0)) == (255, 0, 0) and picture.info == {"kept": True}


def _cut(format, **options):
    data = encoded(Image.fromarray(noise(64, 64)), format, **options)
    return data[: len(data) // 2]


BAD = {
    "empty": (b"", "is empty"),
    "html": (b"\n <!DOCTYPE html><html><body>404</body></html>", "is HTML text, not an image"),
    "html with a comment first": (b"<!-- moved --><html></html>", "is HTML text, not an image"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer, not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is not an image of a known format"),
    "text": (b"hello", "is not an image of a known format"),
    "cut jpeg": (_cut("JPEG"), "is cut off"),
    "cut png": (_cut("PNG"), "is cut off"),
    "cut gif": (_cut("GIF"), "is cut off"),
    "cut webp": (_cut("WEBP"), "is cut off"),
    "png header only": (b"\x89PNG\r\n\x1a\n\0\0", "is cut off"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_with_what_they_are(kind, tmp_path):
    data, reason = BAD[kind]
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as error:
        decode(path)
    assert str(error.value).startswith(f"{path} {reason}")
    assert isinstance(error.value, ValueError)


def test_damaged_png_data():
    data = bytearray(encoded(Image.fromarray(noise(64, 64))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="is (damaged|cut off)"):
        decode(bytes(data))


def test_missing_files_and_empty_rows(tmp_path):
    with pytest.raises(ImageError, match=r"no\.png cannot be read: No such file"):
        decode(tmp_path / "no.png")
    with pytest.raises(ImageError, match="neither a path nor bytes"):
        decode({"path": None, "bytes": None})


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000)])
def test_too_many_pixels_are_refused_from_the_header(width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match="pixels"):
            decode(png_header_only(width, height))


def test_pixel_limit_is_a_choice():
    picture = encoded(Image.new("RGB", (10, 10)))
    assert decode(picture, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match=r"more pixels than the limit of 99 \(10x10\)"):
        decode(picture, max_pixels=99)


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (401, 2)])
def test_extreme_sides_are_refused(size):
    with pytest.raises(ImageError, match="ratio is above 200"):
        decode(encoded(Image.new("RGB", size)))


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (1, 1)])
def test_long_sides_within_the_ratio_are_read(size):
    assert decode(encoded(Image.new("RGB", size))).size == size


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ImageError, match="no pixels"):
        decode(Image.new("RGB", (0, 5)))


def test_pillow_switches_are_left_alone():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK
    for data, _ in BAD.values():
        with pytest.raises(ImageError):
            decode(data)
    decode(encoded(Image.fromarray(noise())), max_pixels=1000)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK)


def test_content_key_is_the_hash_of_the_file(tmp_path):
    data = encoded(Image.fromarray(noise()))
    (tmp_path / "a.png").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    for image in (data, tmp_path / "a.png", {"path": str(tmp_path / "a.png"), "bytes": None}):
        assert content_key(image) == expected
    assert content_key({"path": str(tmp_path / "a.png"), "bytes": data + b"x"}) != expected
    with pytest.raises(ImageError, match="cannot be read"):
        content_key(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_of_is_the_size_that_decode_gives(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (13, 7)).save(buffer, kind, exif=exif)
    assert size_of(buffer.getvalue()) == decode(buffer.getvalue()).size
    with pytest.raises(ImageError, match="is empty"):
        size_of(b"")
