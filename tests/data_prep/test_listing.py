"""The listing: splits by patient, published ones honoured, an order and a digest that say what they should."""

import dataclasses

import numpy as np
import pytest

from cxr_jax.data.records import SPLITS, Box, DataError
from data_prep.chunks import chunk_size
from data_prep.listing import list_samples
from data_prep.readers import Sample
from data_prep.readers.datasets import DatasetsSample
from data_prep.readers.medmnist import MedmnistSample
from data_prep.sample_text import from_text, to_text
from data_prep.splits import draw_split

FRACTIONS = (0.6, 0.2, 0.2)


def samples(count: int, split=lambda i: "") -> list[Sample]:
    return [Sample(f"k{i:03d}", f"p{i // 3}", split(i)) for i in range(count)]


def listed(given, seed=0, on_crossing="stop"):
    return list_samples(given, seed, FRACTIONS, on_crossing)


def test_drawn_splits_are_the_patients_hash():
    given = samples(120)
    listing = listed(given)
    assert {SPLITS[code] for code in listing.split} == set(SPLITS)
    for row in range(120):
        sample = listing.sample(row)
        assert SPLITS[listing.split[row]] == draw_split(sample.patient_id, 0, FRACTIONS)
    assert (np.diff(listing.split) >= 0).all(), "train, then val, then test"
    assert sorted(listing.order) == list(range(120))
    train = listing.order[listing.split == 0]
    assert list(train) != sorted(train), "mixed within a split"


def test_an_image_follows_the_published_split_of_its_patient():
    given = samples(30, lambda i: "test" if i == 4 else "")
    listing = listed(given)
    assert {SPLITS[listing.split[row]] for row in range(30) if listing.sample(row).patient_id == "p1"} == {"test"}


def test_crossing_patients_keep_the_first_of_test_val_train():
    given = samples(9, lambda i: ("train", "val", "test")[i % 3] if i < 3 else "val")
    with pytest.raises(DataError, match=r"patient p0 is in the splits train \(k000\) and test \(k002\), 1 patients"):
        listed(given)
    listing = listed(given, on_crossing="drop")
    assert listing.crossing == {0: "its patient is in test too", 1: "its patient is in test too"}
    assert len(listing) == 7 and {listing.key(row) for row in range(7)}.isdisjoint({"k000", "k001"})


def test_the_digest_tells_every_change_and_nothing_else():
    base = listed(samples(12))
    assert listed(samples(12)).digest == base.digest
    assert listed(samples(12)[::-1]).digest == base.digest, "the reader's order is no matter"
    assert listed(samples(13)).digest != base.digest
    assert listed(samples(12), seed=1).digest != base.digest
    changed = samples(12)
    changed[3] = dataclasses.replace(changed[3], patient_id="p9")
    assert listed(changed).digest != base.digest


def test_repeated_keys_are_refused():
    with pytest.raises(DataError, match="k001: the reader lists it twice"):
        listed([*samples(3), Sample("k001", "p7", "")])


def test_chunks_cover_the_order_and_depend_on_its_length_only():
    listing = listed(samples(30))
    rows = [sample.key for chunk in listing.chunks(range(listing.num_chunks)) for sample in chunk.samples]
    assert rows == [listing.key(row) for row in range(30)]
    assert [chunk_size(count) for count in (1, 600, 16_384, 1_000_000)] == [4, 9, 256, 256]


def test_samples_travel_as_text():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    sample = MedmnistSample("k", "p", "train", pixels, (1, 0))
    back = from_text(to_text(sample))
    assert type(back) is MedmnistSample and (back.key, back.labels) == ("k", (1, 0))
    np.testing.assert_array_equal(back.pixels, pixels)
    plain = DatasetsSample("ü", "p", "val", 1, 2, "x")
    assert from_text(to_text(plain)) == plain
    assert from_text(to_text((Box("a", 0.1, 2.0, 3.0, 4.0), None, True))) == (Box("a", 0.1, 2.0, 3.0, 4.0), None, True)
    for text in ('{"class": "os:system", "fields": ["true"]}', '{"class": "data_prep.build:main", "fields": []}'):
        with pytest.raises(ValueError, match="no dataclass of ours"):
            from_text(text)
    with pytest.raises(TypeError, match="set cannot be sent"):
        to_text({1, 2})
