"""DICOM files with the values and header fields that a test wants, and a folder of good and bad files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom(path: Path, pixels: np.ndarray, bits: int = 12, photometric: str = "MONOCHROME2", **fields: Any) -> Path:
    """A DICOM file with these stored values; fields go into the header, None leaves one out."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = ComputedRadiographyImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.PatientName, header.PatientID = "Doe^Jane", "4711"
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    header.PhotometricInterpretation = photometric
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    header.PixelData = pixels.tobytes()
    for key, value in fields.items():
        if value is None:
            delattr(header, key)
        else:
            setattr(header, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header.save_as(path, enforce_file_format=True)
    return path


def mixed(folder: Path, picture: np.ndarray) -> Path:
    """Three good files, four bad ones, and one that is no radiograph."""
    for name in ("a.png", "sub/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    dicom(folder / "sub/c.dcm", picture.astype(np.uint16) * 16)
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "sub/text.png").write_text("hello")
    dicom(folder / "sub/empty.dcm", picture.astype(np.uint16), PixelData=None)
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    return folder
