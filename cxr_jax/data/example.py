"""A serialised tf.train.Example, parsed without copying its image.

In: a record's bytes. Out: its image, shown where it lies in them, and its other features. Parsing the whole copies the
image twice. Records as `data_prep` writes them are cut by hand; whatever has another form, legal or not, is parsed
whole by the protocol buffer library, so that no record means something else here than to TFDS.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

# Tags: a message's number, and that a length follows. An Example has `features` (1), a map, whose entries (1) have a
# key (1) and a Feature (2), which has a bytes_list (1) of values (1).
_FIRST, _SECOND = 0x0A, 0x12
_IMAGE = b"\x0a\x05image"  # how the map entry of the image begins: its key, five bytes long


def parse(example: bytes) -> tuple[memoryview | bytes, Mapping[str, Any]]:
    """The image of an example, and its features by name (the image is among them or not).

    Raises ValueError for bytes that are no example, and for one without an image or with several.
    """
    try:
        if cut := _cut(example):
            image, rest = cut
            others = tf_feature_pb2.Features.FromString(rest).feature
            if "image" not in others:  # of a key that comes again the last one counts
                return image, others
        fields = tf_example_pb2.Example.FromString(example).features.feature
    except DecodeError:
        raise ValueError("its bytes are no tf.train.Example") from None
    return single(fields, "image", "bytes_list"), fields


def single(fields: Mapping[str, Any], name: str, kind: str) -> Any:
    """The only value of a feature, `kind` being its list. Raises ValueError where there is not exactly one."""
    values: Sequence[Any] = getattr(fields[name], kind).value if name in fields else ()
    if len(values) != 1:
        raise ValueError(f"{name} has {len(values)} values in a {kind}, not one")
    return values[0]


def _cut(example: bytes) -> tuple[memoryview, bytes] | None:
    """The image and the other features as a serialised `Features`; None for another form than the usual one."""
    try:
        if example[0] != _FIRST:
            return None
        size, first = _length(example, 1)
        entry = first
        while True:
            if example[entry] != _FIRST:
                return None
            length, at = _length(example, entry + 1)
            end = at + length
            if example.startswith(_IMAGE, at):
                break
            entry = end
        at += len(_IMAGE)
        for tag in (_SECOND, _FIRST, _FIRST):  # the entry's Feature, its bytes_list, the value: each to the very end
            if example[at] != tag:
                return None
            length, at = _length(example, at + 1)
            if at + length != end:
                return None
    except IndexError:
        return None
    if first + size != len(example) or end > len(example):
        return None
    return memoryview(example)[at:end], example[first:entry] + example[end:]


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A length, seven bits a byte, at `at`, and where what it measures begins; IndexError where it has no end."""
    value = shift = 0
    while data[at] & 0x80:
        if shift == 28:  # lengths have 32 bits
            raise IndexError
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
