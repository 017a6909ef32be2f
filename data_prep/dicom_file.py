"""DICOM bytes to a data set of the wanted tags, and nothing else.

In: the bytes of a file, or an open file, and keywords. Out: a pydicom `Dataset` of these keywords; nothing else of the
file is parsed. What pydicom says of a file may quote any of its values, the patient's name among them, so its
warnings, its log and the texts of its errors are dropped and every error is worded here. Deflated files are inflated
under a limit, since a megabyte may hold gigabytes.
"""

import functools
import io
import logging
import re
import warnings
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from cxr_jax.data.records import DataError
from data_prep.images import MAX_PIXELS, git_lfs_pointer
from data_prep.readers import FlagError
from data_prep.storage import StoreError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

INSTALL = "pip install -r requirements-dicom.txt"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE, EXPLICIT_BIG, IMPLICIT_LITTLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
SIGNATURE_BYTES = 132  # the preamble and "DICM"
_MAX_INFLATED = 4 * MAX_PIXELS  # bytes; no legal picture is larger
# The group length comes first in the meta group: tag (0002,0000), VR UL, length 4, value.
_META_START = re.compile(rb"\x02\x00\x00\x00UL\x04\x00(....)", re.DOTALL)
# A bare data set opens with a tag of group 0002 or 0008, little endian.
_BARE_STARTS = (b"\x02\x00", b"\x08\x00")


@functools.cache
def pydicom() -> ModuleType:
    """The package pydicom, told to be silent; raises FlagError where it is missing."""
    try:
        import pydicom
        import pydicom.config
        import pydicom.filereader
        import pydicom.pixels
        import pydicom.uid
    except ImportError:
        raise FlagError(f"reading DICOM needs the package pydicom; {INSTALL}") from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Once for the process: threads that read headers cannot each change the filters and put them back.
    warnings.filterwarnings("ignore", module=r"(pydicom|pylibjpeg|libjpeg|openjpeg)(\.|$)")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` is our limit
    return pydicom


def is_dicom(start: bytes) -> bool:
    """Whether the first `SIGNATURE_BYTES` of a file are those of DICOM, with the preamble or without."""
    return start[128:132] == b"DICM" or (start[:2] in _BARE_STARTS and start[2:4] != b"\xff\xff" and len(start) >= 8)


def read(file: bytes | BinaryIO, name: str, keywords: Sequence[str], pixels: bool) -> "Dataset":
    """The elements of a file that `keywords` name; those behind the pixels only if `pixels`.

    Raises DataError, with `name` and no value of the file in it, for what is no DICOM file or cannot be parsed.
    """
    dicom = pydicom()
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    start = stream.read(4096)
    if not start:
        raise DataError(f"{name}: the file is empty")
    if pointer := git_lfs_pointer(start):
        raise DataError(f"{name}: {pointer}")
    if not is_dicom(start[:SIGNATURE_BYTES]):
        raise DataError(f"{name}: is no DICOM file")
    stream.seek(0)
    try:
        if DEFLATED.encode() in start:
            return _read_deflated(stream.read(), name, keywords, pixels)
        return dicom.dcmread(stream, force=True, specific_tags=list(keywords), stop_before_pixels=not pixels)
    except (DataError, StoreError):
        raise
    # pydicom raises many types on damaged files (struct.error, KeyError, RecursionError, ...), and quotes values.
    except Exception:
        raise DataError(f"{name}: is a damaged DICOM file: its elements cannot be read") from None


def transfer_syntax(dataset: "Dataset") -> str:
    """The UID of a data set's transfer syntax; of a file without meta group the one that its bytes are in."""
    meta = getattr(dataset, "file_meta", None)
    uid = str(meta.get("TransferSyntaxUID", "") or "") if meta is not None else ""
    if uid:
        return uid
    implicit, little = dataset.original_encoding
    return IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG


def _read_deflated(data: bytes, name: str, keywords: Sequence[str], pixels: bool) -> "Dataset":
    dicom = pydicom()
    match = _META_START.match(data, SIGNATURE_BYTES)
    if match is None:
        raise DataError(f"{name}: is deflated and does not say where its data set begins")
    begin = match.end() + int.from_bytes(match[1], "little")
    meta = dicom.dcmread(io.BytesIO(data[:begin]), force=True).file_meta
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data[begin:], _MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise DataError(f"{name}: inflates to more than {_MAX_INFLATED} bytes, which no picture needs")
    if not inflater.eof:
        raise DataError(f"{name}: its deflated data set is cut off")
    # After inflation the data set is explicit little endian; read as if it were such a file.
    dataset = dicom.filereader.read_dataset(
        io.BytesIO(inflated),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=None if pixels else lambda tag, vr, length: tag >= 0x7FE00008,
        specific_tags=[dicom.tag.Tag(keyword) for keyword in keywords],
    )
    dataset.set_original_encoding(False, True, dataset._character_set)
    dataset.file_meta = meta
    return dataset
