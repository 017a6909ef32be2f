"""What to write instead: the keys that a mistyped one may have meant, and what a Python file that failed has to be.

In: what was typed, the legal keys, an exception. Out: key names, sentences.
"""

import difflib
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

SURE, CLOSE, PERHAPS = 0.8, 0.75, 0.6  # difflib's ratio: of whole names, of words, when nothing else is found
MOST = 3


def nearest(typed: str, keys: Sequence[str]) -> list[str]:
    """Up to three of the dotted `keys` that `typed` may have meant, the likeliest first.

    The same last part elsewhere (`optim.ema`: `objective.ema`); a slip of the fingers; a key that contains the word, a
    word much like it, or its initials (`optim.lr`: `optim.base_learning_rate`), of the typed section first.
    """
    section, _, leaf = typed.rpartition(".")
    same = [key for key in keys if _leaf(key) == leaf]
    if same:
        return same[:MOST]
    here = [key for key in keys if key.rpartition(".")[0] == section]
    slip = difflib.get_close_matches(leaf, [_leaf(key) for key in here], n=1, cutoff=CLOSE)
    if slip:
        return [next(key for key in here if _leaf(key) == slip[0])]
    slip = difflib.get_close_matches(typed, keys, n=1, cutoff=SURE)
    if slip:
        return slip
    for those in (here, keys):
        for alike in (_contains, _like):
            found = [key for key in those if alike(leaf, _leaf(key))]
            if found:
                return found[:MOST]
    return difflib.get_close_matches(typed, keys, n=1, cutoff=PERHAPS)


def did_you_mean(prefix: str, keys: Sequence[str]) -> str:
    """`; did you mean PREFIX.a or PREFIX.b?`, or nothing."""
    return f"; did you mean {' or '.join(f'{prefix}.{key}' for key in keys)}?" if keys else ""


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _contains(word: str, leaf: str) -> bool:
    parts = leaf.split("_")
    initials = "".join(part[:1] for part in parts)
    return word in parts or (len(word) >= 3 and word in leaf) or (len(word) >= 2 and word in initials)


def _like(word: str, leaf: str) -> bool:
    words = [part for part in word.split("_") if len(part) >= 3]
    return any(difflib.get_close_matches(part, leaf.split("_"), n=1, cutoff=CLOSE) for part in words)


def explain_raised(error: Exception, spec: str, *, plain: type[Exception] | tuple = ()) -> str:
    """Why a Python file named by `spec`, `file.py[:argument]`, gave nothing, in one line and with the line if known.

    The message of a `plain` exception stands alone, that of others behind their kind.
    """
    file = spec.partition(":")[0]
    name = Path(file).name
    if isinstance(error, SyntaxError):
        other = Path(error.filename or name).name
        why = re.sub(r" \(detected at line \d+\)", "", error.msg)
        return f"SyntaxError: {why} ({'' if other == name else f'{other}, '}line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    at = next((frame.lineno for frame in reversed(frames) if Path(frame.filename).name == name), None)
    absent = wrong_door(str(error), file) if at is None else None
    if absent:
        return absent
    told = str(error) if isinstance(error, plain) else f"{type(error).__name__}: {error}"
    return told + (f" (line {at})" if at else "")


def wrong_door(message: str, file: str) -> str | None:
    """What to write where the `get_config()` or `get_sweep()` of `file` is not there or was called otherwise."""
    needs = re.search(r"(get_\w+)\(\) missing \d+ required positional arguments?: '(\w+)'", message)
    if needs:
        return f"{needs[1]}() needs an argument, {needs[2]!r}; write {file}:{needs[2].upper()}"
    takes = re.search(r"(get_\w+)\(\) takes 0 positional arguments", message)
    if takes:
        return f"{takes[1]}() takes no argument; write {file} alone"
    absent = re.search(r"has no attribute '(get_\w+)'", message)
    return f"it has no {absent[1]}()" if absent else None
