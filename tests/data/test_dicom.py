"""DICOM to 8-bit pixels: what a reading room would show, checked against pydicom's own windowing."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing
from pydicom.uid import (
    MPEG2MPML,
    EncapsulatedPDFStorage,
    JPEGLosslessSV1,
    RLELossless,
)
from tiny_dicom import dicom

from tbkd_utils.data import dicom as module
from tbkd_utils.data.dicom import is_dicom, read_dicom, windowed
from tbkd_utils.errors import DataError, TbkdError

RAMP12 = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 5  # 24 high, 32 wide, 0 to 3835


def stretched(values: np.ndarray) -> np.ndarray:
    """From the lowest to the highest value, in 8 bits."""
    return np.rint((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)


# --- values to brightness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (14, 16383), (16, 65535)])
def test_without_a_window_the_values_are_stretched(tmp_path: Path, bits: int, top: int) -> None:
    values = np.linspace(top // 3, top, 24 * 32).astype(np.uint16).reshape(24, 32)
    pixels = read_dicom(dicom(tmp_path / "x.dcm", values, bits))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, stretched(values.astype(float)))
    assert (pixels[0, 0], pixels[-1, -1]) == (0, 255)


def test_rows_and_columns_stay_where_they_are(tmp_path: Path) -> None:
    values = np.zeros((24, 32), np.uint16)
    values[3, 20] = 4095
    pixels = read_dicom(dicom(tmp_path / "x.dcm", values))
    assert pixels.shape == (24, 32)
    assert np.argwhere(pixels == 255).tolist() == [[3, 20]]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read_dicom(dicom(tmp_path / "2.dcm", RAMP12))
    inverted = read_dicom(dicom(tmp_path / "1.dcm", RAMP12, photometric="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - plain)
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    plain = read_dicom(dicom(tmp_path / "2.dcm", RAMP12, **window))
    inverted = read_dicom(dicom(tmp_path / "1.dcm", RAMP12, photometric="MONOCHROME1", **window))
    assert np.abs(inverted.astype(int) + plain - 255).max() <= 1  # halves are rounded to even
    assert inverted[0, 0] == 255
    assert inverted[-1, -1] == 0


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("slope", "intercept"), [(None, None), (1, 0), (2.5, -1024)])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_are_those_of_pydicom(
    tmp_path: Path, function: str | None, slope: float | None, intercept: float | None, signed: bool
) -> None:
    values = RAMP12.astype(np.int16) - 1900 if signed else RAMP12
    fields: dict[str, Any] = {"WindowCenter": 600, "WindowWidth": 1500}
    fields |= {"VOILUTFunction": function} if function else {}
    fields |= {"RescaleSlope": slope, "RescaleIntercept": intercept} if slope is not None else {}
    path = dicom(tmp_path / "x.dcm", values, **fields)
    header = pydicom.dcmread(path)
    rescaled = values * (slope or 1.0) + (intercept or 0)
    theirs = apply_windowing(rescaled, header)
    ends = np.array([-(2**11), 2**11 - 1] if signed else [0, 2**12 - 1]) * (slope or 1.0) + (intercept or 0)
    expected = (theirs - ends[0]) / (ends[1] - ends[0]) * 255
    assert np.abs(read_dicom(path) - expected).max() <= 0.5 + 1e-9
    assert len(np.unique(expected)) > 20


def test_signed_16_bit_values_without_window(tmp_path: Path) -> None:
    values = np.linspace(-32768, 32767, 24 * 32).astype(np.int16).reshape(24, 32)
    assert np.array_equal(read_dicom(dicom(tmp_path / "x.dcm", values, 16)), stretched(values.astype(float)))


def test_a_negative_slope_turns_the_values_round(tmp_path: Path) -> None:
    pixels = read_dicom(dicom(tmp_path / "x.dcm", RAMP12, RescaleSlope=-1, RescaleIntercept=4095))
    assert np.array_equal(pixels, 255 - stretched(RAMP12.astype(float)))


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    one = read_dicom(dicom(tmp_path / "1.dcm", RAMP12, WindowCenter=1000, WindowWidth=500))
    two = read_dicom(dicom(tmp_path / "2.dcm", RAMP12, WindowCenter=[1000, 3000], WindowWidth=[500, 80]))
    assert np.array_equal(one, two)


def test_an_impossible_window_is_passed_over(tmp_path: Path) -> None:
    for width in (0, -20):
        path = dicom(tmp_path / "x.dcm", RAMP12, WindowCenter=1000, WindowWidth=width)
        assert np.array_equal(read_dicom(path), stretched(RAMP12.astype(float)))


def test_a_window_of_width_one_is_a_step() -> None:
    assert windowed(np.array([9.0, 9.5, 9.6, 10.0]), 10, 1).tolist() == [0, 0, 1, 1]


def test_an_unknown_voi_function_is_an_error(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12, WindowCenter=1000, WindowWidth=500, VOILUTFunction="LOG")
    with pytest.raises(DataError, match="LOG"):
        read_dicom(path)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_lookup_table_comes_before_the_window(tmp_path: Path, as_bytes: bool) -> None:
    """Entry i of the table stands for the value 100 + i; values beyond its ends take the ends."""
    entries = (np.arange(1000) ** 2 // 16).astype(np.uint16)  # 0 to 62375, in 16 bits
    item = Dataset()
    item.LUTDescriptor = [len(entries), 100, 16]
    item.LUTData = entries.tobytes() if as_bytes else entries.tolist()
    item["LUTData"].VR = "OW" if as_bytes else "US"
    item["LUTDescriptor"].VR = "US"
    path = dicom(tmp_path / "x.dcm", RAMP12, WindowCenter=50, WindowWidth=2, VOILUTSequence=[item])
    expected = np.rint(entries[np.clip(RAMP12.astype(int) - 100, 0, 999)] / 65535 * 255)
    assert np.array_equal(read_dicom(path), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tmp_path: Path, photometric: str) -> None:
    values = RAMP12 + 200
    values[:, :4] = 0
    pixels = read_dicom(dicom(tmp_path / "x.dcm", values, photometric=photometric, PixelPaddingValue=0))
    assert not pixels[:, :4].any()
    inside = stretched(values[:, 4:].astype(float))
    assert np.array_equal(pixels[:, 4:], inside if photometric == "MONOCHROME2" else 255 - inside)


def test_a_constant_image_is_black(tmp_path: Path) -> None:
    assert not read_dicom(dicom(tmp_path / "x.dcm", np.full((8, 8), 7, np.uint16))).any()


def test_8_bit_color_is_returned_as_rgb(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_dicom(dicom(tmp_path / "x.dcm", colors, 8, "RGB")), colors)


def test_a_compressed_file_that_pydicom_can_decode(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12)
    header = pydicom.dcmread(path)
    header.compress(RLELossless)
    header.save_as(tmp_path / "rle.dcm")
    assert np.array_equal(read_dicom(tmp_path / "rle.dcm"), read_dicom(path))


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read_dicom(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, TbkdError)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_without_the_mark_is_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"something else entirely" * 20)
    assert not is_dicom(tmp_path / "x.dcm")
    assert not is_dicom(tmp_path / "absent.dcm")
    refused(tmp_path / "x.dcm", "not a DICOM file", "PNG")
    refused(tmp_path / "absent.dcm", "damaged")


def test_without_pixels_the_kind_of_file_is_named(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12, PixelData=None, SOPClassUID=EncapsulatedPDFStorage)
    assert is_dicom(path)
    refused(path, "without an image", "Encapsulated PDF")


def test_several_frames_are_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12, NumberOfFrames=2, PixelData=RAMP12.tobytes() * 2)
    refused(path, "2 frames", "one frame")


def test_one_frame_that_is_counted_is_fine(tmp_path: Path) -> None:
    assert read_dicom(dicom(tmp_path / "x.dcm", RAMP12, NumberOfFrames=1)).shape == (24, 32)


def test_palettes_and_deep_color_are_refused(tmp_path: Path) -> None:
    refused(dicom(tmp_path / "x.dcm", RAMP12.astype(np.uint8), 8, "PALETTE COLOR"), "PALETTE COLOR", "MONOCHROME2")
    refused(dicom(tmp_path / "y.dcm", np.zeros((4, 4, 3), np.uint16), 16, "RGB"), "RGB with 16 bits")


def test_raw_detector_data_is_refused(tmp_path: Path) -> None:
    refused(dicom(tmp_path / "x.dcm", RAMP12, PresentationIntentType="FOR PROCESSING"), "for presentation")
    assert read_dicom(dicom(tmp_path / "y.dcm", RAMP12, PresentationIntentType="FOR PRESENTATION")).any()


def test_missing_settings_are_named(tmp_path: Path) -> None:
    refused(dicom(tmp_path / "x.dcm", RAMP12, BitsStored=None, Rows=None), "lacks Rows, BitsStored")


def test_truncated_pixels(tmp_path: Path) -> None:
    refused(dicom(tmp_path / "x.dcm", RAMP12, PixelData=RAMP12.tobytes()[:100]), "truncated or damaged")


@pytest.mark.parametrize("size", [140, 200, 400, 800])
def test_a_truncated_file(tmp_path: Path, size: int) -> None:
    whole = dicom(tmp_path / "x.dcm", RAMP12).read_bytes()
    (tmp_path / "x.dcm").write_bytes(whole[:size])
    refused(tmp_path / "x.dcm")


def test_a_far_too_large_image_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    monkeypatch.setattr(module, "pixel_array", lambda *_: pytest.fail("decoded"))
    refused(dicom(tmp_path / "x.dcm", RAMP12), "32 x 24 pixels")


def test_a_blank_window_is_said(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12, WindowCenter=50000, WindowWidth=100)
    refused(path, "center 50000, width 100", "0 to 3835", "blank")


def test_a_compression_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        is_available = False

    monkeypatch.setattr(module, "get_decoder", lambda _: Absent)
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small_RLE.dcm"
    refused(path, "RLE Lossless", "pip install pylibjpeg", "gdcmconv --raw")


def test_a_video_is_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12)
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = MPEG2MPML
    header.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    header["PixelData"].VR = "OB"
    header.save_as(path)
    refused(path, "MPEG2", "not one of single images")


def test_damaged_compressed_pixels(tmp_path: Path) -> None:
    path = dicom(tmp_path / "x.dcm", RAMP12)
    header = pydicom.dcmread(path)
    header.compress(RLELossless)
    header.PixelData = pydicom.encaps.encapsulate([b"\1\0\0\0" * 20])
    header.save_as(path)
    refused(path, "cannot be decoded", "RLE Lossless", "pylibjpeg")


def test_pydicoms_own_examples_are_read_or_refused_and_nothing_else() -> None:
    """Odd files of many makers: no other error than ours."""
    names = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))  # those that it ships
    outcomes = {"read": 0, "refused": 0}
    for path in names:
        if not is_dicom(path) or path.stat().st_size > 2_000_000:
            continue
        try:
            pixels = read_dicom(path)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 2 or pixels.shape[2] == 3
            outcomes["read"] += 1
        except DataError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5


def test_lossless_jpeg_is_named(tmp_path: Path) -> None:
    """The usual compression of hospital archives: without its decoder, or with damaged pixels, said what to do."""
    path = dicom(tmp_path / "x.dcm", RAMP12)
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    header["PixelData"].VR = "OB"
    header.save_as(path)
    refused(path, "JPEG Lossless", "pylibjpeg")
