"""What a DICOM header says of the patient, the study and the view, in the contract's words.

In: an open file (its pixels are not read) or its bytes. Out: `DicomHeader`. The patient's name is read for one purpose:
to find it in file names and ids, so that it can be kept out of everything that is written (`private_words`).
"""

import dataclasses
import re
from typing import TYPE_CHECKING, BinaryIO

from cxr_jax.data.records import DataError
from data_prep.dicom_file import read
from data_prep.readers.table import parse_age, parse_sex, parse_view

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_KEYWORDS = (
    "SOPClassUID", "Modality", "BodyPartExamined", "ViewPosition", "ViewCodeSequence", "PatientSex", "PatientAge",
    "PatientID", "PatientName", "StudyInstanceUID", "Rows", "Columns",
)  # fmt: skip
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR, under whatever name


@dataclasses.dataclass(frozen=True)
class DicomHeader:
    """The header of one file; texts are "" where the file does not say.

    Attributes:
      modality, body_part: as written, in upper case.
      view, sex, age_years: in the contract's words.
      patient_id, study_uid: as written; they identify a person.
      private_words: parts of the patient's name, in lower case; never to be written anywhere.
      is_image: whether it says a size.
      is_directory: whether it is a DICOMDIR.
    """

    modality: str
    body_part: str
    view: str
    sex: str
    age_years: float
    patient_id: str
    study_uid: str
    private_words: frozenset[str] = dataclasses.field(repr=False)
    is_image: bool
    is_directory: bool


def read_header(file: bytes | BinaryIO, name: str) -> DicomHeader:
    """Reads the header; raises DataError, with `name` and no value of the file in it, where it cannot be read."""
    dataset = read(file, name, _KEYWORDS, pixels=False)
    try:
        return DicomHeader(
            modality=_text(dataset, "Modality").upper(),
            body_part=_text(dataset, "BodyPartExamined").upper(),
            view=_view(dataset),
            sex=parse_sex(_text(dataset, "PatientSex")),
            age_years=parse_age(_text(dataset, "PatientAge")),
            patient_id=_text(dataset, "PatientID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            private_words=name_words(_text(dataset, "PatientName")),
            is_image="Rows" in dataset or "Columns" in dataset,
            is_directory=_text(dataset, "SOPClassUID") == _MEDIA_DIRECTORY,
        )
    # Values that cannot be decoded; the texts of these errors quote them.
    except Exception:
        raise DataError(f"{name}: is a damaged DICOM file: its header cannot be read") from None


def name_words(patient_name: str) -> frozenset[str]:
    """The words of a DICOM person name ("DOE^JOHN") by which it is known in other texts, in lower case.

    A part with a digit in it is no name but an id or a description, as anonymised files have it.
    """
    parts = [part for part in re.split(r"[\^=]", patient_name.casefold()) if not re.search(r"\d", part)]
    return frozenset(word for part in parts for word in re.split(r"[\W_]+", part) if len(word) > 1)


def _view(dataset: "Dataset") -> str:
    """ViewPosition, else the meaning of the view code ("postero-anterior", "left lateral")."""
    view = parse_view(_text(dataset, "ViewPosition"))
    if view == "UNKNOWN" and dataset.get("ViewCodeSequence"):
        meaning = re.sub(r"[^a-z]", "", str(dataset.ViewCodeSequence[0].get("CodeMeaning") or "").lower())
        view = {"anteroposterior": "AP", "posteroanterior": "PA"}.get(meaning, "UNKNOWN")
        view = "LATERAL" if meaning.endswith("lateral") else view
    return view


def _text(dataset: "Dataset", keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().strip("\0").strip()
