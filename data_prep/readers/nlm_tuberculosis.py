"""What the two tuberculosis sets of the US National Library of Medicine share: file names and clinical readings.

In: a `Listing` and the file names' beginning. Out: samples. A name ends in `_0` for normal and `_1` for manifestations
of tuberculosis; that is the label, and readings that contradict it are counted. Readings are text files of the same
name in `ClinicalReadings/`; their forms differ by set and by writer:

    Shenzhen    male 45yrs / Female, 28yrs / femal 32yrs / male 16month / female 64days, then the reading
    Montgomery  Patient's Sex: F / Patient's Age: 027Y, then the reading
"""

import re
from collections.abc import Callable, Iterable

from data_prep.readers.publisher import Listing

_NAME = re.compile(r"_([01])\.png$", re.IGNORECASE)
_SEX = re.compile(r"\b(male|female|femal|m|f)\b", re.IGNORECASE)
_AGE = re.compile(r"\b(\d+)\s*(y|yr|yrs|years?|months?|days?)?\b", re.IGNORECASE)


def add_images(listing: Listing, prefix: str, masks_of: Callable[[str], Iterable[str]]) -> None:
    """Adds all images whose names begin with `prefix`; `masks_of` gives the mask files of a name without ending."""
    readings = {file.rsplit("/", 1)[-1][:-4]: file for file in listing.files if file.lower().endswith(".txt")}
    unread = contradicted = 0
    for file in sorted(listing.images):
        name = file.rsplit("/", 1)[-1]
        label = _NAME.search(name)
        if "CXR_png" not in file.split("/") or not name.startswith(prefix) or not label:
            continue
        sex, age, reading = parse_reading(listing.text(readings[name[:-4]]) if name[:-4] in readings else "")
        unread += name[:-4] not in readings
        contradicted += bool(reading) and reading.lower().startswith("normal") == (label[1] == "1")
        listing.add(
            file,
            patient="",
            view="PA",
            sex=sex,
            age=age,
            labels=listing.labels.from_list([f"_{label[1]}"]),
            masks=masks_of(name[:-4]),
        )
    if unread:
        listing.notes.append(f"{unread} images have no clinical reading: sex and age unknown")
    if contradicted:
        listing.notes.append(f"{contradicted} readings contradict their file's name; the name is the label")


def parse_reading(text: str) -> tuple[str, str, str]:
    """Sex (M, F), age as written, and the reading itself; "" for what is not there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    heads = [line for line in lines if re.match(r"patient'?s (sex|age)", line, re.IGNORECASE)] or lines[:1]
    head = " ".join(re.sub(r"patient'?s (sex|age):", "", line, flags=re.IGNORECASE) for line in heads)
    sex, age = _SEX.search(head), _AGE.search(head)
    reading = " ".join(line for line in lines if line not in heads)
    return sex[1][0].upper() if sex else "", "".join(part or "" for part in age.groups()) if age else "", reading
