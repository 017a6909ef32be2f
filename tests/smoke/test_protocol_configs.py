"""The protocols of configs/eval/protocols on datasets of their own names: sources, findings, splits; shrunk."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training_configs import ROOT, evaluated, load, shrink

from cxr_jax.data.records import Record, encode_record, read_manifest
from cxr_jax.data.source import open_split
from cxr_jax.evals import report
from cxr_jax.experiments import build
from cxr_jax.saving import Checkpoints
from cxr_jax.sharding import make_mesh
from cxr_jax.state import abstract_state
from data_prep.dataset_writer import DatasetWriter
from data_prep.vocabulary import FINDINGS, classes_of

FOLDER = "eval/protocols"
NAMES = sorted(path.stem for path in (ROOT / "configs" / FOLDER).glob("[!_]*.py"))
OWN = "Mortality"  # a column of a user's own labels.csv
# The source of each protocol's vocabulary, where it is not the reader's name.
WORDS = {"mimic_cxr": "cxr_lt"}
IMAGES = {"train": 16, "val": 8, "test": 8}


def asked(config):
    """The sources that a protocol reads."""
    return {source for source in (config.data.where.source, config.data.train_where.source) if source}


SOURCES = sorted(set().union(*(asked(load(f"{FOLDER}/{name}")) for name in NAMES)))


@pytest.mark.parametrize("name", NAMES)
def test_findings_are_words_that_the_source_has(name):
    config = load(f"{FOLDER}/{name}")
    for source in asked(config):
        assert (ROOT / f"data_prep/readers/{source}.py").exists()
        assert set(config.data.targets) <= set(classes_of(WORDS.get(source, source)))
    assert len(set(config.data.targets)) == len(config.data.targets) > 0
    expected = {"cxr_lt": 40, "chexpert5": 5, "nih14": 14, "vindr": 28}
    assert len(config.data.targets) == expected.get(name, len(config.data.targets))


@pytest.fixture(scope="module")
def published(phantom_dataset, tmp_path_factory):
    """Phantoms under the names of every source, two images a patient, with findings as that source can know them."""
    folder = tmp_path_factory.mktemp("published") / "dataset"
    pictures = open_split(str(phantom_dataset), "train")
    manifest, vocabulary = read_manifest(phantom_dataset), (*FINDINGS, OWN)
    with DatasetWriter(folder, manifest.name, 1 << 28, overwrite=False) as writer:
        for split, count in IMAGES.items():
            for source in SOURCES:
                known = {*classes_of(WORDS.get(source, source)), OWN}
                for i in range(count):
                    old = pictures[i]
                    labels = [int(i // 2 % 2) if name in known else -1 for name in vocabulary]
                    size = {name: int(old[name]) for name in ("height", "width")}
                    who = {"patient_id": f"{source}/{split}/{i // 2}", "study_id": "1", "source": source}
                    who |= {"image_id": f"{source}/{split}/{i}", "view": ("PA", "LATERAL")[i % 2]}
                    record = Record(old["image"], **size, **who, labels=tuple(labels))
                    writer.add(split, encode_record(record))
        writer.finish(dataclasses.replace(manifest, vocabulary=vocabulary, shards={}, fingerprint=""))
    return folder


@pytest.fixture(scope="module")
def backbone(phantom_dataset, tmp_path_factory, compiled_once):
    """A run with a checkpoint of random numbers: nothing is trained here."""
    workdir = tmp_path_factory.mktemp("backbone") / "run"
    config = shrink(load("smoke"), phantom_dataset)
    experiment = build(config)
    shapes = abstract_state(experiment.objective, experiment.tx, make_mesh(devices=jax.devices()[:1]))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), shapes)
    geometry = {"fit": "pad", "image_size": config.model.image_size, "mean": 0.5, "std": 0.25}
    facts = {"config": config.to_dict(), "geometry": geometry, "fingerprint": "", "vocabulary": [], "data_skip": 0}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, {**experiment.meta, **facts})
    checkpoints.close()
    return workdir


@pytest.mark.parametrize("name", NAMES)
def test_the_protocol_runs_on_its_own_source(name, backbone, published, tmp_path, monkeypatch):
    config = load(f"{FOLDER}/{name}")
    config.init_from, config.data.path = str(backbone), str(published)
    config.data.targets = config.data.targets[:2]
    config.baselines.update(random=False, floor=False)
    config.training.seeds = (0,)
    monkeypatch.setattr(report, "write_report", lambda path, **_: path.touch())  # tests/evals has the page
    results = evaluated(config, tmp_path, monkeypatch)
    rows = IMAGES["test"] * (len(SOURCES) if name == "outcome" else 1)
    # Both images of a patient are one study here.
    assert results["counts"]["images"] == rows // (2 if config.study == "average" else 1)
    assert set(results["per_class"]) == set(config.data.targets)
    assert all(entry["auroc"] is not None for entry in results["per_class"].values())
    with (tmp_path / "predictions.csv").open() as file:
        images = [row["image_id"] for row in csv.DictReader(file)]
    assert {image.split("/")[1] for image in images} == {"test"}
    if config.data.where.source:
        assert {image.split("/")[0] for image in images} == {config.data.where.source}


def test_two_views_of_a_study_are_read_together(backbone, published, tmp_path, monkeypatch):
    config = load(f"{FOLDER}/chexpert5")
    config.init_from, config.data.path, config.study = str(backbone), str(published), "concatenate"
    config.data.targets = config.data.targets[:2]
    config.baselines.update(random=False, floor=False)
    config.training.seeds = (0,)
    monkeypatch.setattr(report, "write_report", lambda path, **_: path.touch())
    results = evaluated(config, tmp_path, monkeypatch)
    assert results["counts"]["images"] == IMAGES["test"] // 2
    assert results["evaluated"]["a row"].startswith("a study, the tokens of a frontal and a lateral image")
