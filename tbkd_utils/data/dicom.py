"""Read one DICOM radiograph into the 8-bit pixels that a reading room would show."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array

from tbkd_utils.data.images import MAX_PIXELS
from tbkd_utils.errors import DataError

GREY = ("MONOCHROME1", "MONOCHROME2")
INSTALL = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# What pydicom and its decoders raise on damaged or odd files.
_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError, OverflowError)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: 128 bytes of anything, then `DICM`. The ending does not matter."""
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: str | Path) -> np.ndarray:
    """Read a DICOM radiograph as 8-bit pixels, as it is meant to be displayed.

    In this order: the modality's rescale slope and intercept (or lookup table); the first VOI lookup table, else the
    first window center and width under the file's VOI LUT function, else the range from the lowest to the highest
    value; MONOCHROME1 is inverted, so that air is dark. Pixels that hold the padding value become black and do not
    count for the range. Color of 8 bits (a screen capture) is returned as RGB. Nothing is turned or mirrored, so
    boxes are in pixels of the image as stored.

    Args:
        path: A DICOM file with one frame.

    Returns:
        uint8 pixels, (h, w) for gray or (h, w, 3) for color.

    Raises:
        DataError: The file is no DICOM, damaged, holds no pixels, several frames, color of another kind or raw
            detector data (for processing), its compression needs a package that is not installed, or its window shows
            none of its values.
    """
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that break the standard in harmless ways
        header = _read(path)
        try:
            _refuse(path, header)
            stored = _decoded(path, header)
            if header.PhotometricInterpretation in COLOUR:
                return np.array(stored)
            return np.rint(_shown(path, header, stored) * 255).astype(np.uint8)
        except DataError:
            raise
        except _ERRORS as error:  # pydicom reads a value only when it is asked for
            raise DataError(f"{path}: its header is damaged or odd ({error}). Export the file again.") from error


def _read(path: Path) -> Any:
    try:
        return pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as error:
        raise DataError(
            f"{path}: not a DICOM file (the mark DICM is missing). Export it again as DICOM Part 10, or as PNG."
        ) from error
    except _ERRORS as error:
        raise DataError(f"{path}: the DICOM header is damaged ({error}). Copy or export the file again.") from error


def _refuse(path: Path, header: Any) -> None:
    """Raises if this is not one frame of a displayable radiograph; the pixels are not looked at yet."""
    if "PixelData" not in header:
        kind = header.get("SOPClassUID")
        what = f" It is of the kind '{kind.name}'." if kind else ""
        raise DataError(f"{path}: a DICOM file without an image.{what} Export the radiograph itself.")
    missing = [key for key in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation",
                               "PhotometricInterpretation", "SamplesPerPixel") if header.get(key) is None]  # fmt: skip
    if missing:
        raise DataError(f"{path}: the DICOM header lacks {', '.join(missing)}. Export the file again.")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(f"{path}: holds {frames} frames, and a radiograph has one. Export one frame as its own file.")
    color, bits = header.PhotometricInterpretation, header.BitsAllocated
    if color not in GREY and not (color in COLOUR and bits == 8 and header.SamplesPerPixel == 3):
        raise DataError(
            f"{path}: pixels of the kind {color} with {bits} bits are not read: expected {' or '.join(GREY)}, or "
            "8-bit RGB. Export it as gray DICOM or as PNG."
        )
    if header.Rows * header.Columns > MAX_PIXELS:
        raise DataError(
            f"{path}: the header announces {header.Columns} x {header.Rows} pixels, far beyond a radiograph. If it "
            "really is one, store a smaller copy."
        )
    if header.get("PresentationIntentType") == "FOR PROCESSING":
        raise DataError(
            f"{path}: raw detector data (Presentation Intent Type FOR PROCESSING), which looks unlike the radiographs "
            "that the network learned from. Export the image 'for presentation'."
        )


def _decoded(path: Path, header: Any) -> np.ndarray:
    """The stored values, (h, w) of any integer type, or uint8 (h, w, 3) RGB."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path}: the DICOM header lacks the Transfer Syntax: how pixels are stored. Export it again.")
    advice = "Or have it uncompressed: `gdcmconv --raw IN OUT`, or 'Explicit VR Little Endian' when exporting."
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(f"{path}: the compression '{syntax.name}' is not one of single images. {advice}") from error
    if not decoder.is_available:
        raise DataError(
            f"{path}: reading the compression '{syntax.name}' needs a package that is not installed: "
            f"`{INSTALL}`. {advice}"
        )
    try:
        return pixel_array(header)
    except (*_ERRORS, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        more = f" If the file is sound: `{INSTALL}` reads more of '{syntax.name}'. {advice}"
        raise DataError(
            f"{path}: the pixels are truncated or damaged, or cannot be decoded ({reason}). Copy or export the file "
            f"again.{more if syntax.is_compressed else ''}"
        ) from error


def _shown(path: Path, header: Any, stored: np.ndarray) -> np.ndarray:
    """The displayed brightness, float64 (h, w) in [0, 1], air dark."""
    padding = np.zeros(stored.shape, dtype=bool)
    if header.get("PixelPaddingValue") is not None:
        ends = (header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue))
        padding = (stored >= min(ends)) & (stored <= max(ends))
    values = np.asarray(apply_modality_lut(stored, header), dtype=np.float64)  # (h, w)
    inside = values[~padding] if not padding.all() else values
    low, high = inside.min(), inside.max()
    window = _window(header)
    if header.get("VOILUTSequence"):
        shown, how = _looked_up(header.VOILUTSequence[0], values), "VOI lookup table"
    elif window is not None:
        shown, how = windowed(values, *window), f"window (center {window[0]:g}, width {window[1]:g})"
    else:
        shown, how = np.clip((values - low) / max(high - low, 1e-12), 0, 1), ""
    seen = shown[~padding] if not padding.all() else shown
    if how and low < high and seen.min() == seen.max():
        raise DataError(
            f"{path}: its {how} shows none of its values, {low:g} to {high:g}, so the image would be blank. Correct "
            "or remove these settings, or export it as PNG."
        )
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.where(padding, 0.0, shown)


def windowed(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Bring values to [0, 1] by a window, as DICOM defines it (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: float64 of any shape, after rescaling.
        center: Window center.
        width: Window width; at least 1 for LINEAR (1 is a step), above 0 for the others.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Returns:
        float64 of the same shape in [0, 1].

    Raises:
        ValueError: An unknown function.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"there is no VOI LUT function {function!r}")
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _window(header: Any) -> tuple[float, float, str] | None:
    """The first window that can be applied: center, width, function; None if there is none."""
    center, width = (header.get(key) for key in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    center, width = (one[0] if isinstance(one, pydicom.multival.MultiValue) else one for one in (center, width))
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    smallest = 1 if function == "LINEAR" else np.nextafter(0, 1)
    return (float(center), float(width), function) if float(width) >= smallest else None


def _looked_up(item: Any, values: np.ndarray) -> np.ndarray:
    """Values through a lookup table, in [0, 1]; those beyond its ends take the ends."""
    count, first, bits = (int(one) for one in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    if len(table) != count:
        raise ValueError(f"a VOI lookup table announces {count} entries and has {len(table)}")
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return np.clip(table[index] / (2**bits - 1), 0, 1)
