"""The phantom: each image depends on (seed, index) only, and shows what its labels, mask and boxes say."""

import numpy as np
import pytest

from cxr_jax.data.records import VIEWS
from data_prep.readers.phantom import PhantomSamples, make_record, render
from data_prep.readers.phantom_findings import FINDINGS

SIZE = 128


@pytest.fixture(scope="module")
def phantoms():
    samples = PhantomSamples(48, seed=1)
    return [render(sample, 1, SIZE) for sample in samples]


def test_an_image_depends_on_seed_and_index_only(phantoms):
    longer = PhantomSamples(10**9, seed=1)
    again = render(longer[17], 1, SIZE)
    assert np.array_equal(again.pixels, phantoms[17].pixels)
    assert again.boxes == phantoms[17].boxes
    other = render(PhantomSamples(48, seed=2)[17], 2, SIZE)
    assert other.pixels.shape != again.pixels.shape or not np.array_equal(other.pixels, again.pixels)


def test_patients_have_one_to_four_images_in_a_row():
    patients = [sample.patient_id for sample in PhantomSamples(240, seed=0)]
    counts = [patients.count(patient) for patient in dict.fromkeys(patients)]
    assert set(counts) == {1, 2, 3, 4}
    assert patients == sorted(patients)


def test_a_patients_images_share_sex_and_heart_but_are_not_the_same_picture(phantoms):
    samples = PhantomSamples(48, seed=1)
    first, second = next((i, i + 1) for i in range(47) if samples[i].patient_id == samples[i + 1].patient_id)
    one, two = phantoms[first], phantoms[second]
    assert one.sex == two.sex and two.age_years == one.age_years + 1
    assert ("Cardiomegaly" in one.present) == ("Cardiomegaly" in two.present)
    assert one.pixels.shape != two.pixels.shape or not np.array_equal(one.pixels, two.pixels)


def test_labels_masks_and_boxes_agree(phantoms):
    for phantom in phantoms:
        height, width = phantom.pixels.shape
        assert max(height, width) == SIZE and phantom.mask.shape == (height, width)
        assert 0.05 < phantom.mask.mean() < 0.55
        assert {box.label for box in phantom.boxes} <= phantom.present
        for box in phantom.boxes:
            assert box.x >= 0 and box.x + box.w <= width and box.y >= 0 and box.y + box.h <= height
        assert phantom.view in VIEWS and phantom.sex in ("M", "F")
    assert set.union(*(set(phantom.present) for phantom in phantoms)) == set(FINDINGS)


def test_lungs_are_darker_than_the_rest_of_the_trunk(phantoms):
    for phantom in phantoms:
        rows, columns = np.nonzero(phantom.mask)
        trunk = np.zeros_like(phantom.mask)
        trunk[rows.min() : rows.max(), columns.min() : columns.max()] = True
        assert phantom.pixels[phantom.mask].mean() + 25 < phantom.pixels[trunk & ~phantom.mask].mean()
        assert phantom.pixels.std() > 30


def test_hidden_labels_are_unknown_never_negative():
    sample = PhantomSamples(4, seed=0)[0]
    known = make_record(sample, 0, 64, 90, 0.0)
    hidden = make_record(sample, 0, 64, 90, 1.0)
    assert set(known.labels) <= {0, 1} and set(hidden.labels) == {-1}
    assert hidden.image == known.image
