"""A step's rows: shared out among threads, kept in memory within bounds, named on demand."""

import numpy as np
import pytest

from cxr_jax.data.decode import decode_grey, decode_to_canvas
from cxr_jax.data.pipeline import train_batches
from cxr_jax.data.records import DataError
from cxr_jax.data.source import open_split
from cxr_jax.data.steps import DecodedCache, Row, StepSource, load_rows
from cxr_jax.sharding import batch_sharding, make_mesh


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


def source(split, **changes):
    options = {"batch_size": 8, "local_rows": np.arange(8), "total_steps": 10**7, "seed": 0} | changes
    return StepSource(split, **options)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_rows_do_not_depend_on_the_threads_that_share_them(split, threads):
    assert_same(source(split, threads=threads, targets=("Effusion",))[4], source(split, targets=("Effusion",))[4])


def test_far_steps_touch_no_other_record(split, monkeypatch):
    """Step 1,000,000 reads its own 8 records and nothing before."""
    read = []
    real = type(split.records).brief
    monkeypatch.setattr(
        type(split.records), "brief", lambda self, row, *names: read.append(row) or real(self, row, *names)
    )
    far = source(split)
    assert far.positions(10**6) and not read
    far[10**6]
    assert read == far.positions(10**6)


@pytest.mark.parametrize("margin", [0, 20])
def test_decoding_into_a_canvas_is_decoding(split, margin):
    """The canvas as wide as the image, where rows are written in place, and a wider one."""
    data = split[0]["image"]
    pixels = decode_grey(data, "record")
    height, width = pixels.shape
    canvas = np.zeros((height + 15, width + margin), np.uint8)
    assert decode_to_canvas(data, canvas, "record") == (height, width)
    np.testing.assert_array_equal(canvas[:height, :width], pixels)
    assert not canvas[height:].any() and not canvas[:, width:].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_canvas_that_is_too_small_is_refused(split, axis):
    side = [200, 200]
    side[axis] = decode_grey(split[0]["image"], "record").shape[axis] - 1
    with pytest.raises(DataError, match="px does not fit the canvas"):
        decode_to_canvas(split[0]["image"], np.zeros(side, np.uint8), "record")


def test_kept_rows_are_the_decoded_ones(split):
    """Two passes over all rows, the second from memory as far as it goes, in several threads."""
    kept = source(split, cache_bytes=20 * 80 * 80, threads=4, targets=("Effusion", "sex:F"))
    plain = source(split, targets=("Effusion", "sex:F"))
    for step in range(12):
        assert_same(kept[step], plain[step])


def test_what_is_kept_is_bounded_and_stays(split, monkeypatch):
    cache = DecodedCache(3 * 80 * 80 + 100)
    first = load_rows(split, range(6), cache=cache)
    first["image"][:] = 7  # the caller's canvas is its own
    monkeypatch.setattr(type(split.records), "brief", lambda self, row, *names: pytest.fail("read again"))
    again = load_rows(split, [2, 0, 1], cache=cache)
    for i, row in enumerate((2, 0, 1)):
        assert again["image"][i].max() > 7 and cache.get(row) is not None
    assert [cache.get(i) is not None for i in range(6)] == [True] * 3 + [False] * 3


def test_a_larger_row_leaves_room_for_a_smaller_one():
    cache, row = DecodedCache(100), Row(np.zeros((5, 5), np.uint8), [], "")
    for i, side in enumerate((9, 5, 4, 4)):
        cache.put(i, row._replace(image=np.zeros((side, side), np.uint8)))
    assert [cache.get(i) is not None for i in range(4)] == [True, False, True, False]


def test_records_are_told_for_the_whole_batch_as_it_is_handed_out(split):
    told = []
    sharding = batch_sharding(make_mesh())
    options = {"batch_size": 16, "sharding": sharding, "seed": 2, "data_skip": 3, "start_step": 5, "total_steps": 8}
    batches = train_batches(split, **options, on_records=lambda step, named: told.append((step, named)))
    for seen, batch in enumerate(batches, 1):
        assert len(told) == seen, "a batch that waits is not part of the run yet"
        step, named = told[-1]
        assert step == 4 + seen and named.keys() == {"index", "image_id"}
        assert named["index"] == np.asarray(batch["index"]).tolist()
        assert named["image_id"] == [split.text(i, "image_id") for i in named["index"]]
        assert batch.keys() == {"image", "size", "index"}
    assert len(told) == 3


def test_rows_of_other_processes_are_named_too(split):
    mine = source(split, local_rows=np.array([1, 6]), name_all=True)[3]
    every = source(split, name_all=True)[3]
    assert mine["index"].tolist() == every["index"][[1, 6]].tolist()
    assert mine["all_index"].tolist() == every["index"].tolist()
    assert mine["all_image_id"].tolist() == [split.text(i, "image_id") for i in every["index"].tolist()]


@pytest.mark.parametrize("prefetch_to_device", [0, 1, 3])
def test_batches_placed_ahead_are_the_same_and_end(split, prefetch_to_device):
    sharding = batch_sharding(make_mesh())
    options = {"batch_size": 16, "sharding": sharding, "seed": 0, "total_steps": 5}
    batches = list(train_batches(split, **options, prefetch_to_device=prefetch_to_device))
    plan = source(split, batch_size=16, local_rows=np.arange(16))
    assert [np.asarray(batch["index"]).tolist() for batch in batches] == [plan.positions(t) for t in range(5)]


def test_a_record_that_cannot_be_decoded_ends_the_stream_with_its_name(split, monkeypatch):
    real = type(split.records).brief

    def torn(self, row, *names):
        record = real(self, row, *names)
        return record | {"image": record["image"][:200]}

    monkeypatch.setattr(type(split.records), "brief", torn)
    with pytest.raises(DataError, match="damaged JPEG"):
        next(train_batches(split, batch_size=8, total_steps=3, sharding=batch_sharding(make_mesh()), seed=0))
