"""Small DICOM files for tests, written with pydicom from chosen pixels and tags."""

import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid


def smooth(seed: int = 0, height: int = 40, width: int = 48, top: int = 4000) -> np.ndarray:
    """A smooth uint16 picture [h, w] from 0 to `top`."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.sin(rows / (5 + seed)) + np.cos(columns / 7)
    return np.round((picture - picture.min()) / np.ptp(picture) * top).astype(np.uint16)


def dicom(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags) -> Dataset:
    """A CR image of grey [h, w] or RGB [h, w, 3] pixels; `tags` adds or replaces elements, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["tiny"])
    grey = pixels.ndim == 2
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if grey else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if grey else "RGB"
    if not grey:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientID, dataset.PatientName, dataset.PatientSex, dataset.PatientAge = "", "", "F", "043Y"
    dataset.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if "HighBit" not in tags:
        dataset.HighBit = dataset.BitsStored - 1
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def lut(entries: np.ndarray, first: int, bits: int) -> Sequence:
    """The sequence of one look-up table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return Sequence([item])


def written(dataset: Dataset) -> bytes:
    """The bytes of the file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def write_folder(folder: Path, number: int, **tags) -> Path:
    """A folder of `number` small files, two of each patient; a tag's value may be a list, one for each file."""
    folder.mkdir(parents=True)
    for index in range(number):
        own = {keyword: value[index] if isinstance(value, list) else value for keyword, value in tags.items()}
        own = {"PatientID": f"mrn-{index // 2}", "StudyInstanceUID": f"1.2.{index}", **own}
        (folder / f"{index:03d}.dcm").write_bytes(written(dicom(smooth(index), **own)))
    return folder
