"""Read one radiograph file into 8-bit pixels, or say why it cannot be read."""

from pathlib import Path

import numpy as np
from PIL import Image

from tbkd_utils.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
"""The file formats that are tried; the content decides, not the file's ending."""
MAX_PIXELS = 89_478_485
"""Larger images are refused before decoding (Pillow's own limit against decompression bombs)."""
# What Pillow raises on damaged files: not OSError alone.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as 8-bit pixels.

    What is stored in another form is converted:

    * 16-bit gray: the full range 0..65535 goes linearly to 0..255, ``round(v / 257)``. No windowing: an image
      that uses only the low 12 bits stays dark. Modes ``I;16*``, and ``I`` when its values fit in 16 bits.
    * 16-bit color: Pillow itself keeps the high byte of each value.
    * 1-bit: 0 and 255.
    * Palette, CMYK and other color: RGB.
    * Transparency (RGBA, gray with alpha, a transparent palette entry): composited on black, the gray of air.
    * Three equal channels, as in the original TBX11K files: one gray channel, nothing is lost.

    Orientation tags (EXIF) are not applied, since boxes are in pixels of the image as stored.

    Args:
        path: A PNG, JPEG, TIFF (its first page) or BMP file.

    Returns:
        uint8 pixels, (h, w) for gray or (h, w, 3) for color; a fresh, writable array.

    Raises:
        DataError: The file is absent, empty, truncated, damaged, not an image, holds more than
            ``MAX_PIXELS`` pixels, or stores floats or integers outside 16 bits.
    """
    path = Path(path)
    with _opened(path) as image:
        try:
            image.load()
        except _DECODER_ERRORS as error:
            raise DataError(
                f"{path}: the image is truncated or damaged ({error}). Copy or download the file again."
            ) from error
        pixels = _to_uint8(image, path)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0].copy()  # (h, w, 3) -> (h, w)
    return pixels


def stored_mode(path: str | Path) -> str:
    """Tell how Pillow sees the stored pixels, from the header alone.

    Args:
        path: An image file.

    Returns:
        Pillow's mode: ``"L"`` 8-bit gray, ``"RGB"``, ``"P"`` palette, ``"I;16"`` 16-bit gray, ...

    Raises:
        DataError: The file is absent, empty, not an image or too large.
    """
    with _opened(Path(path)) as image:
        return image.mode


def to_gray(image: np.ndarray) -> np.ndarray:
    """Turn 8-bit pixels into one gray channel by luminance.

    Args:
        image: uint8 (h, w) or (h, w, 3).

    Returns:
        uint8 (h, w); ``0.299 R + 0.587 G + 0.114 B`` as Pillow's mode ``L`` rounds it (ITU-R 601-2 luma). A
        gray image is returned as it is.

    Raises:
        ValueError: The array has another dtype or shape.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"expected uint8 (h, w) or (h, w, 3), got {image.dtype} {image.shape}")
    if image.ndim == 2:
        return image
    return np.array(Image.fromarray(image).convert("L"))


def _opened(path: Path) -> Image.Image:
    """Open an image file and read its header, with errors that say what to do."""
    if not path.exists():
        raise DataError(f"{path}: no such file. Check the name, or complete the copy of the dataset.")
    if not path.is_file():
        raise DataError(f"{path}: this is a folder, not an image file. Name the file inside it.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes). Copy or download it again.")
        image = Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image, or its header is damaged. Look "
            "at the file (a saved web page is a common case), or download it again."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path)) from error
    except PermissionError as error:
        raise DataError(f"{path}: reading is not permitted. Change the file's permissions.") from error
    except DataError:
        raise
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: the header is damaged ({error}). Copy or download the file again.") from error
    # Pillow only warns between one and two times its limit.
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(_too_large(path))
    return image


def _too_large(path: Path) -> str:
    return (
        f"{path}: the header announces more than {MAX_PIXELS:,} pixels, far beyond a radiograph. If it "
        "really is one, store a smaller copy."
    )


def _to_uint8(image: Image.Image, path: Path) -> np.ndarray:
    """Convert a decoded image of any mode to uint8 (h, w) or (h, w, 3)."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{path}: integer pixels from {values.min()} to {values.max()} do not fit in 16 bits, so "
                "their scale is unknown. Store the image with 8 or 16 bits."
            )
        return ((values + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no known scale. Store the image with 8 or 16 bits.")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return np.array(Image.alpha_composite(black, image.convert("RGBA")).convert("RGB"))
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))
    return np.array(image.convert("RGB"))
