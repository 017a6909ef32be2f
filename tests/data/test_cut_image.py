"""A record's image is shown where it lies in the record's bytes, its other features are parsed without it."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from cxr_jax.data.records import DataError
from cxr_jax.data.shards import cut_image


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 300_000])
def test_the_image_is_found_in_a_record_of_any_length_wherever_it_stands(length):
    image = np.random.default_rng(length).bytes(length)
    for others in ({}, {"a": b"\n\x05image", "image_id": b"x"}, {"zeta": b"z" * 200, "imagf": b"\n\x05image\x12"}):
        example = tf_example_pb2.Example()
        for name, value in {**others, "image": image}.items():
            example.features.feature[name].bytes_list.value.append(value)
        example.features.feature["labels"].int64_list.value.extend([1, -1])
        for deterministic in (True, False):
            found, rest = cut_image(example.SerializeToString(deterministic=deterministic))
            features = tf_feature_pb2.Features.FromString(rest).feature
            assert found == image and set(features) == {*others, "labels"}
            assert all(features[name].bytes_list.value[0] == value for name, value in others.items())
            assert list(features["labels"].int64_list.value) == [1, -1]
    with pytest.raises(DataError, match="has no image"):
        cut_image(tf_example_pb2.Example().SerializeToString() or b"\n\x00")
