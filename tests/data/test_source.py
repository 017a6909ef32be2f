"""Step t is records `order[(t + data_skip) * B + r]`, whatever the threads, and rows go where the sharding says."""

import jax
import numpy as np
import pytest

from cxr_jax.data.decode import decode_grey
from cxr_jax.data.pipeline import eval_batches, local_rows, to_global, train_batches
from cxr_jax.data.records import DataError
from cxr_jax.data.source import check_targets, open_split, target_values
from cxr_jax.data.steps import StepSource
from cxr_jax.sharding import batch_sharding, make_mesh

BATCH = 8


@pytest.fixture(scope="module")
def split(phantom_dataset):
    return open_split(str(phantom_dataset), "train")


def source(split, rows=range(BATCH), **changes):
    options = {"batch_size": BATCH, "total_steps": 100, "seed": 3} | changes
    return StepSource(split, local_rows=np.array(list(rows)), **options)


def positions(split, steps, **changes):
    return [p for t in range(steps) for p in source(split, **changes).positions(t)]


def test_every_pass_over_the_data_is_another_permutation(split):
    n = len(split)
    order = positions(split, 3 * n // BATCH + 1)
    passes = [order[:n], order[n : 2 * n], order[2 * n : 3 * n]]
    for one in passes:
        assert sorted(one) == list(range(n))
    assert passes[0] != passes[1] != passes[2] and passes[0] != sorted(passes[0])


def test_the_order_depends_on_the_seed_alone(split):
    assert positions(split, 4) == positions(split, 4)
    assert positions(split, 4) != positions(split, 4, seed=4)


def test_data_skip_moves_whole_batches(split):
    assert source(split, data_skip=5).positions(2) == source(split).positions(7)


def test_local_rows_pick_from_the_global_batch(split):
    whole = source(split).positions(6)
    assert source(split, rows=(1, 2, 7)).positions(6) == [whole[1], whole[2], whole[7]]


def test_batches_of_another_size_read_the_same_order(split):
    """Two batches of 4 are one batch of 8: the order is addressed by image, not by batch."""
    halves = source(split, rows=range(4), batch_size=4)
    assert halves.positions(0) + halves.positions(1) == source(split).positions(0)


@pytest.fixture(scope="module")
def sharding():
    return batch_sharding(make_mesh(replica=2, fsdp=4, devices=jax.devices()))


def train(split, sharding, **changes):
    options = {"batch_size": BATCH, "total_steps": 4, "seed": 3} | changes
    return list(train_batches(split, sharding=sharding, **options))


def test_batches_are_the_decoded_records_whatever_the_number_of_threads(split, sharding):
    one, many = train(split, sharding, threads=1, prefetch=1), train(split, sharding, threads=8, prefetch=8)
    assert len(one) == len(many) == 4
    for t, (a, b) in enumerate(zip(one, many, strict=True)):
        expected = source(split).positions(t)
        np.testing.assert_array_equal(a["index"], expected)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        for row, position in enumerate(expected):
            pixels = decode_grey(split[position]["image"], "record")
            height, width = pixels.shape
            canvas = np.asarray(a["image"][row])
            assert tuple(np.asarray(a["size"][row])) == (height, width)
            np.testing.assert_array_equal(canvas[:height, :width], pixels)
            assert not canvas[height:].any() and not canvas[:, width:].any()


def test_starting_late_continues_the_same_batches(split, sharding):
    whole, late = train(split, sharding), train(split, sharding, start_step=2)
    assert len(late) == 2
    np.testing.assert_array_equal(late[0]["image"], whole[2]["image"])


def test_labels_are_one_zero_or_unknown_as_recorded(split, sharding):
    targets = ("Effusion", "sex:F")
    (batch,) = train(split, sharding, targets=targets, total_steps=1)
    column = split.manifest.vocabulary.index("Effusion")
    for row, position in enumerate(batch["index"].tolist()):
        record = split[position]
        sex = record["sex"].decode() if isinstance(record["sex"], bytes) else record["sex"]
        assert list(np.asarray(batch["labels"][row])) == [record["labels"][column], int(sex == "F")]


PERMUTED = [5, 2, 7, 0, 3, 6, 1, 4]


def test_rows_are_read_from_the_sharding_on_a_permuted_mesh():
    """Each device holds the global rows that the sharding assigns to it, whatever the order of devices."""
    mesh = make_mesh(replica=2, fsdp=4, devices=[jax.devices()[i] for i in PERMUTED])
    sharding = batch_sharding(mesh)
    rows = local_rows(sharding, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    local = {"x": 100 + rows.astype(np.int32), "y": np.stack([rows, -rows], 1).astype(np.float32)}
    placed = to_global(local, rows, 16, sharding)
    np.testing.assert_array_equal(placed["x"], 100 + np.arange(16))
    np.testing.assert_array_equal(placed["y"][:, 1], -np.arange(16))
    for shard in placed["x"].addressable_shards:
        at = PERMUTED.index(shard.device.id)
        np.testing.assert_array_equal(shard.data, 100 + np.array([2 * at, 2 * at + 1]))


def test_a_process_loads_the_rows_of_its_devices_and_no_others(sharding, monkeypatch):
    """Of 16 rows, this process sees four devices only, out of order: rows 4-5, 14-15, 0-1 and 6-7."""

    def half_of_the_pod(self, shape):
        return {f"device {i}": (slice(start, start + 2),) for i, start in enumerate((4, 14, 0, 6))}

    monkeypatch.setattr(type(sharding), "addressable_devices_indices_map", half_of_the_pod)
    np.testing.assert_array_equal(local_rows(sharding, 16), [0, 1, 4, 5, 6, 7, 14, 15])


def test_rows_that_two_devices_share_are_loaded_once():
    """Under tensor parallelism, devices of one tensor group hold the same rows."""
    mesh = make_mesh(replica=1, fsdp=4, tensor=2, devices=jax.devices())
    np.testing.assert_array_equal(local_rows(batch_sharding(mesh), 8), np.arange(8))


def test_evaluation_sees_every_row_once_in_order(phantom_dataset, sharding):
    split = open_split(str(phantom_dataset), "val")
    batches = list(eval_batches(split, batch_size=BATCH, sharding=sharding))
    valid = np.concatenate([b["valid"] for b in batches])
    index = np.concatenate([b["index"] for b in batches])
    assert len(valid) % BATCH == 0
    np.testing.assert_array_equal(index[valid], np.arange(len(split)))
    assert valid[: len(split)].all() and not valid[len(split) :].any()


def test_filters_keep_only_what_matches(phantom_dataset):
    women = open_split(str(phantom_dataset), "train", where={"sex": "F"})
    assert 0 < len(women) < 38
    assert all(women[i]["sex"] in (b"F", "F") for i in range(len(women)))
    labelled = open_split(str(phantom_dataset), "train", targets=("Effusion",))
    column = labelled.manifest.vocabulary.index("Effusion")
    assert all(labelled[i]["labels"][column] >= 0 for i in range(len(labelled)))


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("tran", {}, "it has train, val, test|it has "),
        ("train", {"targets": ("Efusion",)}, "Effusion"),
        ("train", {"where": {"colour": "x"}}, "source, view, sex"),
        ("train", {"where": {"sex": "UNKNOWN"}}, "no record of"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(phantom_dataset, split, options, message):
    with pytest.raises(DataError, match=message):
        open_split(str(phantom_dataset), split, **options)


def test_an_age_is_a_target_where_it_is_known_and_a_column_of_the_table_comes_first(split):
    ages = [float(split[i]["age_years"]) for i in range(len(split))]
    expected = [[-1 if age < 0 else int(age >= limit) for limit in (30, 60.5)] for age in ages]
    np.testing.assert_array_equal(split.labels(("age>=30", "age>=60.5")), expected)
    assert {0, 1} <= set(np.ravel(expected))
    record = {"age_years": 70.0, "labels": [0]}
    assert target_values(record, ("age>=60",), ("age>=60",)) == [0]
    assert target_values(record | {"age_years": -1.0}, ("age>=60",), ()) == [-1]
    with pytest.raises(DataError, match=r"'age>60' is not in the dataset; .*age>=N \(years\)"):
        check_targets(("age>60",), ())


def test_joined_splits_are_their_records_end_to_end(split, phantom_dataset):
    both, val = (open_split(str(phantom_dataset), name) for name in ("train+val", "val"))
    ids = [[part.text(i, "image_id") for i in range(len(part))] for part in (both, split, val)]
    assert ids[0] == ids[1] + ids[2]
    for name in ("train+dev", "val+val"):
        with pytest.raises(DataError, match=r"no split 'dev'; it has|names one twice"):
            open_split(str(phantom_dataset), name)
