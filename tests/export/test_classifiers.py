"""CheXFound's file of classifiers: names and metadata are believed, disagreement is refused, nothing old stays."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cxr_jax.export.classifiers import add_classifiers, grid_name
from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.folder import write_folder
from cxr_jax.export.heads import member
from cxr_jax.export.model_card import model_card
from cxr_jax.export.ours import logits
from cxr_jax.export.rules import LayoutError
from cxr_jax.models.vit import Features
from tests.export.tiny import GLORI, grey_target, grid_of, random_parts, tiny_model, write

MODEL = tiny_model()
OLD = {"targets": ["old"], "learning_rates": [0.5, 0.25, 0.125], "run": "r", "step": 1, "network": "teacher"}


@pytest.fixture(scope="module")
def contents():
    """A backbone that still remembers the head of an earlier fine-tuning."""
    return Contents({"teacher": random_parts({"backbone": MODEL})}, MODEL, Geometry("pad", 32), {}, OLD)


def linear_file(folder, names, inputs=48, noted=None):
    """Linear classifiers of two classes, as CheXFound writes them, and the matrix of the first."""
    rng, tensors = np.random.default_rng(0), {}
    for name in names:
        tensors[f"{name}.linear.weight"] = rng.standard_normal((2, inputs)).astype(np.float32)
        tensors[f"{name}.linear.bias"] = rng.standard_normal(2).astype(np.float32)
    save_file(tensors, folder / "c.safetensors", None if noted is None else {"cxr_jax": json.dumps(noted)})
    return folder / "c.safetensors", tensors


@pytest.mark.parametrize(("blocks", "pooled"), [(1, True), (2, False), (2, True)])
def test_a_linear_classifier_reads_what_its_name_says(contents, tmp_path, blocks, pooled):
    """CheXFound's input: CLS of the last blocks, then the mean patch of the last; computed here in float64."""
    name = grid_name(blocks, pooled, 1e-3)
    file, tensors = linear_file(tmp_path, [name], 24 * (blocks + pooled))
    added, assumed = add_classifiers(contents, file)
    options = added.options["head"]
    assert (options["blocks"], options["mean_patch"]) == (blocks, pooled)
    assert added.facts["learning_rates"] == [1e-3] and added.facts["targets"] == ["class_0", "class_1"]
    assert assumed == ("classes called class_0 to class_1",)
    rng = np.random.default_rng(1)
    cls, patches = (rng.standard_normal((2, 3, *more)).astype(np.float32) for more in ((24,), (5, 24)))
    read = [*cls[-blocks:], *([patches[-1].mean(1)] if pooled else [])]
    weight, bias = (tensors[f"{name}.linear.{part}"].astype(np.float64) for part in ("weight", "bias"))
    tokens = Features(jnp.asarray(cls), jnp.zeros((2, 3, 0, 24)), jnp.asarray(patches))
    found = logits(options, member(added.networks["teacher"]["head"], 0), tokens)
    np.testing.assert_allclose(found, np.concatenate(read, -1) @ weight.T + bias, atol=1e-5)


def test_the_file_s_own_learning_rates_and_classes_are_the_head_s(contents, tmp_path):
    """Fewer rates than the old head had; the folder and its card are written from what the file says."""
    file, tensors = linear_file(tmp_path, [grid_name(1, True, rate) for rate in (1e-3, 1e-2)])
    added, _ = add_classifiers(contents, file)
    assert added.facts["learning_rates"] == [1e-3, 1e-2] and contents.facts["targets"] == ["old"]
    target = grey_target("chexfound")
    written = write_folder(tmp_path, added, target)
    assert written.beside == ()
    card = model_card(added, target, "CheXFound", written)
    assert "classes class_0, class_1" in card and "as CheXFound keeps them" in card and "no place for" not in card
    assert load_file(tmp_path / "classifiers.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("noted", [True, False])
def test_glori_s_heads_come_from_metadata_or_are_assumed_aloud(contents, tmp_path, noted):
    options = {**GLORI, "num_heads": 4}
    network = {**contents.networks["teacher"], **random_parts({"head": options})}
    network["head"] = grid_of(network["head"], 2)
    facts = {"targets": list("abcde"), "learning_rates": [1e-4, 1.23456789012e-3]}
    write(tmp_path, MODEL, network, grey_target("chexfound"), {"head": options}, facts)
    file = tmp_path / "classifiers.safetensors"
    if not noted:
        save_file(load_file(file), file)
    added, assumed = add_classifiers(contents, file)
    assert added.options["head"]["num_heads"] == (4 if noted else 8)
    assert ("num_heads=8 of GLoRI" in assumed) == (not noted)
    if noted:
        assert {key: added.facts[key] for key in facts} == facts and assumed == ()


@pytest.mark.parametrize(
    ("names", "inputs", "noted", "words"),
    [
        (["classifiers_dict.first"], 48, None, "is no classifier of CheXFound"),
        (["other.linear:blocks=1:avgpool=True:lr=0_1"], 48, None, "is no classifier of CheXFound"),
        ([grid_name(1, False, 0.1)], 48, None, "reads 48 numbers, but its name says 1 tokens"),
        ([grid_name(1, True, 0.1), grid_name(2, False, 0.1)], 48, None, "read different tokens"),
        ([grid_name(1, True, 0.1)], 48, {"options": {"head": {"name": "linear", "width": 24, "num_classes": 2,
          "blocks": 2, "mean_patch": False}}}, "noted is blocks=2, but names and shapes of its tensors say 1"),
        ([grid_name(1, True, 0.1)], 48, {"targets": ["a"]}, "noted are 1 class names for 2 classes"),
        ([grid_name(1, True, 0.1)], 48, {"learning_rates": [0.2]}, "noted are the learning rates [0.2]"),
        ([grid_name(1, True, 0.1)], 48, {"options": [1]}, "cxr_jax.options=[1]; legal are JSON objects"),
        ([grid_name(1, True, 0.1)], 48, "x", "cxr_jax='x'; legal are JSON objects"),
    ],
)  # fmt: skip
def test_disagreement_is_refused_in_one_line(contents, tmp_path, names, inputs, noted, words):
    file, _ = linear_file(tmp_path, names, inputs, noted)
    with pytest.raises(LayoutError) as caught:
        add_classifiers(contents, file)
    (line,) = str(caught.value).splitlines()
    assert words in line and str(file) in line, line
