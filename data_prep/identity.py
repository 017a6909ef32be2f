"""What becomes of the words that identify a patient: hashes of ids, and file paths without names.

In: ids, names and paths as a source writes them. Out: the texts that may be stored and shown. The hash of an id is the
first 64 bits of sha256 over a salt and the id: images of one patient stay together, and with the same salt in every
build. Without a salt it hides nothing from one who can list all possible ids, such as seven-digit record numbers.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_HASH_DIGITS = 16
_SHOWN_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
_SHORT = 3  # letters: longer words of a name are also found inside other words, and shorter ids are no ids


def hash_id(text: str, salt: str) -> str:
    """16 hexadecimal digits that stand for an id; "" stays ""."""
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()[:_HASH_DIGITS] if text else ""


def holds(text: str, name_words: frozenset[str], patient_id: str = "") -> bool:
    """Whether a text holds a word of a name, all of its words run together, or an id of at least four characters.

    `name_words` are in lower case, as `dicom_header.name_words` gives them.
    """
    text = text.casefold()
    if name_words & set(re.findall(r"[^\W\d_]+", text)) or any(len(w) > _SHORT and w in text for w in name_words):
        return True
    if len(name_words) > 1 and all(word in text for word in name_words):
        return True
    whole = rf"(?<![^\W_]){re.escape(patient_id.casefold())}(?![^\W_])"
    return len(patient_id) > _SHORT and re.search(whole, text) is not None


def hidden_parts(files: Iterable[tuple[str, frozenset[str], str]], salt: str) -> dict[str, str]:
    """What replaces the folder and file names that hold a name or an id, for all (path, name words, id) together.

    A part that one file's header gives away is replaced in every path, also in those whose header cannot be read.
    """
    hidden: dict[str, str] = {}
    for file, words, patient_id in files:
        for part in file.split("/"):
            if part not in hidden and holds(part, words, patient_id):
                suffix = PurePosixPath(part).suffix
                shown = suffix if suffix.lower() in _SHOWN_SUFFIXES else ""
                # With the id in the hash, a list of names is not enough to find out whose file it is.
                hidden[part] = f"hidden-{hash_id(f'{patient_id}/{part}', salt)[:8]}{shown}"
    return hidden
