"""Several datasets as one: classes by name, the larger canvas, one fingerprint over all; faults named by folder."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cxr_jax.data.records import DataError, read_manifest
from cxr_jax.data.source import fields_of, open_split
from cxr_jax.data.steps import StepSource, load_rows
from data_prep import build


@pytest.fixture(scope="module")
def folder_dataset(tmp_path_factory):
    """20 pictures of 60 x 90 px with two labels, one of which the phantoms have too."""
    home = tmp_path_factory.mktemp("folder")
    pictures = home / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    lines = ["file,patient_id,Tuberculosis,Effusion"]
    for i in range(20):
        Image.fromarray(random.integers(0, 255, (90, 60), np.uint8)).save(pictures / f"{i}.png")
        lines.append(f"{i}.png,patient{i},{i % 2},{'' if i % 3 else 1}")
    (pictures / "labels.csv").write_text("\n".join(lines) + "\n")
    flags = ["--reader=folder", f"--input={pictures}", f"--output={home / 'dataset'}", "--workers=0"]
    flags += ["--quality_filter=off", "--dedup=none"]  # noise is no radiograph
    assert build.main(flags) == 0
    return home / "dataset"


@pytest.fixture(scope="module")
def both(phantom_dataset, folder_dataset):
    return f"{phantom_dataset}, {folder_dataset}"


def test_records_come_end_to_end_with_labels_by_class_name(both, phantom_dataset, folder_dataset):
    one, two, whole = (open_split(str(path), "train") for path in (phantom_dataset, folder_dataset, both))
    assert len(whole) == len(one) + len(two)
    assert whole.canvas == (90, 80)
    vocabulary = whole.manifest.vocabulary
    assert set(vocabulary) == {*one.manifest.vocabulary, *two.manifest.vocabulary}
    for i in range(len(whole)):
        part, own = (one, i) if i < len(one) else (two, i - len(one))
        assert whole.dataset(i) == (0 if part is one else 1)
        expected = dict(zip(part.manifest.vocabulary, part[own]["labels"], strict=True))
        for record in (whole[i], whole.brief(i)):
            assert record["image"] == part[own]["image"]
            assert record["labels"] == [expected.get(name, -1) for name in vocabulary]


def test_brief_records_say_what_whole_ones_do(both):
    split = open_split(both, "train")
    for i in (0, len(split) - 1):
        whole, brief = split[i], split.brief(i)
        for name in ("image_id", "source", "view", "sex"):
            found = whole[name].decode() if isinstance(whole[name], bytes) else whole[name]
            assert brief[name] == found
        assert brief["image"] == whole["image"] and brief["mask"] == whole["mask"]
        assert brief["age_years"] == whole["age_years"] and brief["labels"] == whole["labels"]


def test_brief_records_hold_what_was_asked_for(both):
    split = open_split(both, "train")
    whole, name = split.brief(0), split.manifest.vocabulary[0]
    for names in [(), ("image_id",), ("mask", "age_years"), ("labels", "sex")]:
        assert split.brief(0, names) == {"image": whole["image"]} | {field: whole[field] for field in names}
    assert fields_of((name, "sex:F", "age>=60", "sex:M", "view:AP"), (name,)) == ("labels", "sex", "age_years", "view")


def test_targets_of_one_dataset_are_unknown_in_the_other(both, phantom_dataset):
    split = open_split(both, "train")
    loaded = load_rows(split, [0, len(split) - 1], ("Tuberculosis", "Cardiomegaly"))
    assert loaded["labels"][0, 0] == -1 and loaded["labels"][1, 0] in (0, 1)
    assert loaded["labels"][0, 1] in (-1, 0, 1) and loaded["labels"][1, 1] == -1
    with pytest.raises(DataError, match=f"{phantom_dataset}: no record .* of Tuberculosis; .* has labels of "):
        open_split(both, "train", targets=("Tuberculosis",))


def test_weights_set_the_share_of_every_batch(both):
    split = open_split(both, "train", weights=(1, 3))
    source = StepSource(split, batch_size=16, local_rows=np.arange(16), total_steps=50, seed=0)
    for step in (0, 7, 10**6):
        assert [split.dataset(i) for i in source.positions(step)].count(1) == 12


def test_without_weights_an_epoch_has_every_record_once(both):
    split = open_split(both, "train")
    source = StepSource(split, batch_size=len(split), local_rows=np.arange(len(split)), total_steps=9, seed=0)
    assert sorted(source.positions(3)) == list(range(len(split)))


def test_filters_and_weights_go_together(both):
    split = open_split(both, "train", weights=(1, 1), targets=("Effusion",))
    source = StepSource(split, batch_size=20, local_rows=np.arange(20), total_steps=9, seed=0)
    column = split.manifest.vocabulary.index("Effusion")
    positions = source.positions(0)
    assert [split.dataset(i) for i in positions].count(0) == 10
    assert all(split.brief(i)["labels"][column] != -1 for i in positions)


def test_the_fingerprint_covers_datasets_their_order_and_weights(both, phantom_dataset, folder_dataset):
    alone = open_split(str(phantom_dataset), "train", weights=(3,)).manifest.fingerprint
    assert alone == read_manifest(phantom_dataset).fingerprint
    choices = [(both, ()), (both, (1, 1)), (both, (1, 2)), (f"{folder_dataset},{phantom_dataset}", ())]
    found = [open_split(path, "train", weights=weights).manifest.fingerprint for path, weights in choices]
    assert len({alone, *found}) == 5
    assert open_split(both, "val").manifest.fingerprint == found[0]


def test_a_dataset_named_twice_is_refused(phantom_dataset):
    with pytest.raises(DataError, match="the same dataset"):
        open_split(f"{phantom_dataset},{phantom_dataset}", "train")


@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (1, 0), (1e-300, 1)])
def test_weights_that_do_not_fit_are_a_matter_of_the_config(both, weights):
    with pytest.raises(ValueError, match=r"^data\.weights="):
        open_split(both, "train", weights=weights)


@pytest.mark.parametrize("fault", ["missing", "cut", "damaged"])
def test_a_broken_shard_of_one_dataset_is_told_by_its_folder(both, folder_dataset, phantom_dataset, tmp_path, fault):
    broken = tmp_path / "broken"
    shutil.copytree(folder_dataset, broken)
    (shard,) = broken.glob("*-train.*")
    content = shard.read_bytes()
    if fault == "missing":
        shard.unlink()
    elif fault == "cut":
        shard.write_bytes(content[: len(content) // 2])
    else:
        image = content.rindex(b"\xff\xd8\xff") + 100
        shard.write_bytes(content[:image] + bytes(200) + content[image + 200 :])
    with pytest.raises(DataError, match=str(broken)) as told:
        split = open_split(f"{phantom_dataset},{broken}", "train")
        load_rows(split, range(len(split)))
    assert "\n" not in str(told.value) and "build the dataset again" in str(told.value)
