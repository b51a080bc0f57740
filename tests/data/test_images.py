import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tbkd_utils.data.images import MAX_PIXELS, read_image, stored_mode, to_gray
from tbkd_utils.errors import DataError, TbkdError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 21
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def saved(tmp_path: Path, image: Image.Image, name: str = "x.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_gray_comes_back_exactly_and_is_writable(tmp_path: Path) -> None:
    pixels = read_image(saved(tmp_path, Image.fromarray(GREY)))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, GREY)
    pixels[0, 0] = 7


def test_color_comes_back_exactly(tmp_path: Path) -> None:
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(COLOUR))), COLOUR)


def test_three_equal_channels_collapse_to_one(tmp_path: Path) -> None:
    pixels = read_image(saved(tmp_path, Image.fromarray(np.dstack([GREY] * 3))))
    assert pixels.shape == (3, 4)
    assert np.array_equal(pixels, GREY)
    assert pixels.flags.c_contiguous


def test_one_pixel_of_color_keeps_three_channels(tmp_path: Path) -> None:
    almost = np.dstack([GREY] * 3)
    almost[-1, -1, 2] += 1
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(almost))), almost)


def test_every_16_bit_value_is_scaled_linearly_over_the_full_range(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = saved(tmp_path, Image.fromarray(values))
    assert stored_mode(path) == "I;16"
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.rint(values / 257).astype(np.uint8))
    assert (pixels[0, 0], pixels[-1, -1]) == (0, 255)


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert read_image(saved(tmp_path, big, "x.tif")).tolist() == [[0, 1, 255]]


def test_32_bit_integers_are_read_if_they_fit_in_16_bits_and_refused_otherwise(tmp_path: Path) -> None:
    fits = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32))
    assert fits.mode == "I"
    assert read_image(saved(tmp_path, fits, "fits.tif")).tolist() == [[0, 1, 255]]
    for bad in (-1, 65536):
        image = Image.fromarray(np.array([[0, bad]], dtype=np.int32))
        with pytest.raises(DataError, match=r"bad\.tif.*do not fit in 16 bits"):
            read_image(saved(tmp_path, image, "bad.tif"))


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tif.*no known scale"):
        read_image(saved(tmp_path, Image.fromarray(GREY / np.float32(255)), "x.tif"))


def test_one_bit_becomes_0_and_255(tmp_path: Path) -> None:
    bits = np.array([[True, False, True]])
    assert read_image(saved(tmp_path, Image.fromarray(bits))).tolist() == [[255, 0, 255]]


def test_palette_becomes_its_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    path = saved(tmp_path, image)
    assert stored_mode(path) == "P"
    assert read_image(path).tolist() == [[[255, 0, 0], [0, 255, 0], [9, 9, 9]]]


def test_gray_palette_becomes_gray(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([5, 5, 5, 200, 200, 200])
    assert read_image(saved(tmp_path, image)).tolist() == [[5, 200]]


def test_transparent_palette_entry_is_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert read_image(saved(tmp_path, image, transparency=0)).tolist() == [[[0, 0, 0], [0, 255, 0]]]


def test_alpha_is_composited_on_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], dtype=np.uint8)
    pixels = read_image(saved(tmp_path, Image.fromarray(rgba)))
    assert pixels[0, :2].tolist() == [[200, 100, 50], [0, 0, 0]]
    assert np.abs(pixels[0, 2].astype(int) - [100, 50, 25]).max() <= 1


def test_gray_with_alpha_becomes_gray_on_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[200, 255], [200, 0]]], dtype=np.uint8), "LA")
    path = saved(tmp_path, image)
    assert stored_mode(path) == "LA"
    assert read_image(path).tolist() == [[200, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOUR).convert("CMYK"), "x.tif")
    assert np.array_equal(read_image(path), COLOUR)


def test_orientation_tag_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(GREY), exif=exif)), GREY)


def test_content_decides_not_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(GREY).save(path, "PNG")
    assert np.array_equal(read_image(path), GREY)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_file(tmp_path: Path, kind: str, kept: float) -> None:
    content = encoded(kind)
    path = tmp_path / "half.png"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"half\.png.*(truncated|damaged).*again"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_zero_byte_file(tmp_path: Path) -> None:
    path = tmp_path / "nothing.png"
    path.touch()
    for read in (read_image, stored_mode):
        with pytest.raises(DataError, match=r"nothing\.png.*empty \(0 bytes\).*again"):
            read(path)


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n"])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"page\.png.*not a PNG, JPEG, TIFF or BMP"):
        read_image(path)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png: no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="folder, not an image"):
        read_image(tmp_path)


def test_errors_are_ones_the_user_can_mend(tmp_path: Path) -> None:
    with pytest.raises(TbkdError):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="no such file"):
        read_image(tmp_path / "absent.png")


def png_that_announces(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, MAX_PIXELS // 10_000 + 1)])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path, width: int, height: int, action: str) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_announces(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"bomb\.png.*more than 89,478,485 pixels"):
            read_image(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF"]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    kept=st.floats(0, 1),
)
def test_damaged_bytes_give_pixels_or_an_image_error(
    tmp_path: Path, kind: str, edits: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(encoded(kind))
    for place, value in edits:
        # Squared, so that headers are hit more often than pixels.
        content[int(place**2 * (len(content) - 1))] = value
    path = tmp_path / "x.png"
    path.write_bytes(content[: max(1, int(len(content) * kept**0.2))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = read_image(path)
        except DataError:
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2 or pixels.shape[2] == 3


def test_to_gray_is_luminance() -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [9, 9, 9]]], dtype=np.uint8)
    assert to_gray(primaries).tolist() == [[76, 150, 29, 255, 9]]


def test_to_gray_weights_every_color() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    expected = colors @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_gray(colors) - expected).max() <= 0.51


def test_to_gray_keeps_gray() -> None:
    assert np.array_equal(to_gray(GREY), GREY)


@pytest.mark.parametrize(
    "image", [GREY.astype(np.float32), GREY[None, None], np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.uint8)]
)
def test_to_gray_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        to_gray(image)
