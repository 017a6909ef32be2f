"""A source's words for findings to the labels of its records.

In: the words of a list of findings (`from_list`), or a table's cells by column (`from_cells`). Out: a label for each
class of the source: 1 positive, 0 negative, -1 unknown. Words that the vocabulary does not know are counted by name in
`unmapped`, for the user; nothing else is done with them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from cxr_jax.data.records import NEGATIVE, POSITIVE, UNKNOWN_LABEL, DataError
from data_prep.vocabulary import classes_of, names_of

# What a source's uncertain mark becomes.
UNCERTAIN = {"unknown": UNKNOWN_LABEL, "positive": POSITIVE, "negative": NEGATIVE}
_NUMBERS = {1.0: POSITIVE, 0.0: NEGATIVE}
_EMPTY = ("", "nan", "none", "na")


class Labels:
    """The labels of one source; equal ones are one object, as a million records share a few thousand."""

    def __init__(self, source: str, uncertain: str = "unknown"):
        self.classes = classes_of(source)
        self.unmapped: Counter[str] = Counter()
        self._names = names_of(source)
        self._uncertain = UNCERTAIN[uncertain]
        self._made: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def unknown(self) -> tuple[int, ...]:
        """The labels of an image of which nothing is known."""
        return self.of({})

    def canonical(self, word: str) -> tuple[str, ...]:
        """The canonical names of a word; none, and one more in `unmapped`, if the vocabulary does not know it."""
        names = self._names.get(word.strip().lower(), ())
        if not names:
            self.unmapped[word.strip()] += 1
        return names

    def keep(self, names: Iterable[str]) -> None:
        """Restricts the classes to `names`, where a file of the source holds fewer than the source has."""
        kept = set(names)
        self.classes = tuple(name for name in self.classes if name in kept)

    def of(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """Labels from canonical names and their values; a class that is not among them is unknown."""
        labels = tuple(values.get(name, UNKNOWN_LABEL) for name in self.classes)
        return self._made.setdefault(labels, labels)

    def from_list(self, words: Iterable[str], absent: int = NEGATIVE, closed: str = "") -> tuple[int, ...]:
        """Labels from the list of what was found; every other class is `absent`.

        Raises DataError for an unknown word of a source whose words are all known; `closed` then names the row.
        """
        found: set[str] = set()
        for word in words:
            names = self.canonical(word)
            if closed and not names:
                raise DataError(
                    f"{closed}: {word.strip()!r} is no finding of this source ({', '.join(self.classes)}); mend it"
                )
            found.update(names)
        return self.of({name: POSITIVE if name in found else absent for name in self.classes})

    def from_cells(self, cells: Mapping[str, str], where: str) -> tuple[int, ...]:
        """Labels from a table's cells by column: 1, 0, -1 (uncertain) or empty (unknown), as "1", "1.0", ...

        Raises DataError, naming the row `where`, for any other text.
        """
        values: dict[str, int] = {}
        for column, text in cells.items():
            value = self.value(text, column, where)
            for name in self.canonical(column):
                # Where two columns mean one class, the one that says more decides.
                values[name] = max(value, values.get(name, UNKNOWN_LABEL))
        return self.of(values)

    def votes(self, positive: int, readers: int) -> int:
        """One label of several readers: positive if more than half of them say so, negative if none does.

        A minority is the uncertain mark and becomes what `uncertain` says.
        """
        if not positive:
            return NEGATIVE
        return POSITIVE if 2 * positive > readers else self._uncertain

    def value(self, text: str, column: str, where: str) -> int:
        """The label of one cell; -1 in a table is the source's uncertain mark. Raises DataError for other texts."""
        text = text.strip()
        if text.lower() in _EMPTY:
            return UNKNOWN_LABEL
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if number == -1:
            return self._uncertain
        if number not in _NUMBERS:
            raise DataError(f"{where}: {column} is {text!r}; legal: 1, 0, -1 (uncertain) or empty")
        return _NUMBERS[number]
