"""A record parsed without copying its image means what the protocol buffer library says it means, or is an error."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from cxr_jax.data.example import parse


def example_of(**values: bytes) -> tf_example_pb2.Example:
    example = tf_example_pb2.Example()
    for name, value in values.items():
        example.features.feature[name].bytes_list.value.append(value)
    example.features.feature["labels"].int64_list.value.extend([1, -1])
    return example


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field on the wire; content shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def entry(name: bytes, value: bytes) -> bytes:
    return field(1, field(1, name) + field(2, field(1, field(1, value))))


def check_as_the_library(payload: bytes) -> None:
    """`parse` gives the library's image and other features, or ValueError where that has none or several."""
    try:
        fields = tf_example_pb2.Example.FromString(payload).features.feature
        images = list(fields["image"].bytes_list.value)
        others = {name: fields[name].SerializeToString() for name in fields if name != "image"}
    except (DecodeError, UnicodeDecodeError):
        images = []
    if len(images) != 1:
        with pytest.raises(ValueError):
            parse(payload)
        return
    image, found = parse(payload)
    assert image == images[0]
    assert {name: found[name].SerializeToString() for name in found if name != "image"} == others


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 300_000])
def test_the_image_is_shown_where_it_lies_in_a_record_of_any_length(length):
    image = np.random.default_rng(length).bytes(length)
    for others in ({}, {"a": b"\n\x05image", "image_id": b"x"}, {"zeta": b"z" * 200, "imagf": b"\n\x05image\x12"}):
        example = example_of(**others, image=image)
        for deterministic in (True, False):
            payload = example.SerializeToString(deterministic=deterministic)
            found, features = parse(payload)
            assert isinstance(found, memoryview) and found.obj is payload and found == image
            assert "image" not in features and list(features["labels"].int64_list.value) == [1, -1]
            check_as_the_library(payload)


JPEG = b"picture"
USUAL = entry(b"a", b"1") + entry(b"image", JPEG) + entry(b"view", b"PA")
UNUSUAL = {
    "a second image": field(1, USUAL + entry(b"image", b"later")),
    "an unknown field that looks like the image": field(1, field(7, entry(b"image", b"false")[2:]) + USUAL),
    "an unknown field before the features": field(9, b"x") + field(1, USUAL),
    "two messages of features": field(1, USUAL) + field(1, entry(b"view", b"LATERAL")),
    "two messages of features, images in both": field(1, USUAL) + field(1, entry(b"image", b"later")),
    "a value before its key": field(1, field(1, field(2, field(1, field(1, JPEG))) + field(1, b"image"))),
    "something after the value": field(1, field(1, entry(b"image", JPEG)[2:] + field(5, b"x"))),
    "two values": field(1, field(1, field(1, b"image") + field(2, field(1, field(1, b"1") + field(1, b"2"))))),
    "two lists": field(
        1, field(1, field(1, b"image") + field(2, field(1, field(1, b"1")) + field(3, b"\x0a\x01\x05")))
    ),
    "a list of numbers": field(1, field(1, field(1, b"image") + field(2, field(3, field(1, b"\x05"))))),
    "no value": field(1, field(1, field(1, b"image") + field(2, b""))),
    "no features": b"",
    "a trailing byte": field(1, USUAL) + b"\x00",
    "a length without an end": b"\x0a" + b"\xff" * 20,
    "an overlong length": b"\x0a" + bytes([len(USUAL) | 0x80, *[0x80] * 9, 0]) + USUAL,
    "a name that is no text": field(1, USUAL + entry(b"\xff\xfe", b"x")),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_another_form_is_left_to_the_library(name):
    check_as_the_library(UNUSUAL[name])


def test_a_record_cut_short_or_with_a_changed_byte_is_what_the_library_says():
    payload = example_of(age=b"7", image=JPEG * 3, image_id=b"x", view=b"PA").SerializeToString(deterministic=True)
    for end in range(len(payload)):
        check_as_the_library(payload[:end])
    for at in range(len(payload)):
        for value in (0x00, 0x0A, 0x12, 0x80, 0xFF, payload[at] ^ 1, payload[at] ^ 8):
            check_as_the_library(payload[:at] + bytes([value]) + payload[at + 1 :])
