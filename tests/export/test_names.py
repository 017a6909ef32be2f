"""The name table: every tensor there and back bit for bit, and every mismatch refused by name."""

import numpy as np
import pytest

from cxr_jax.export import ours
from cxr_jax.export.mapping import Dims, Entry, Table, flatten, from_layout, to_layout, unflatten
from cxr_jax.export.names import hugging_face
from cxr_jax.export.rules import LayoutError, Rule
from tests.export.tiny import VARIANTS, random_backbone, tiny_model

SIZES = {"d": 6, "h": 2, "e": 3, "t": 3, "g": 2, "y": 2, "x": 2}


def _flat(model, channels=1):
    flat = {f"backbone/{path}": array for path, array in flatten(random_backbone(model)).items()}
    kernel = flat["backbone/patch_embed/kernel"]
    flat["backbone/patch_embed/kernel"] = np.stack([kernel + c for c in range(channels)])
    return flat


def parameter_shapes(model):
    return ours.parameter_shapes({"backbone": model})


def _tensors(flat, table):
    """What `to_layout` gives, made."""
    return {name: tensor.make() for name, tensor in to_layout(flat, table).items()}


def _setup(name):
    model = tiny_model(**VARIANTS[name])
    layout = hugging_face(ffn=model["ffn"], registers=bool(model["num_registers"]))
    dims = Dims(model["depth"], model["width"], model["num_heads"], model["patch_size"])
    return model, Table(layout, dims)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_is_bit_exact(name, channels):
    model, table = _setup(name)
    flat = _flat(model, channels)
    expected = parameter_shapes(model) | {"backbone/patch_embed/kernel": (channels, 64, 24)}
    back = from_layout(_tensors(flat, table), table, expected=expected)
    assert back.keys() == flat.keys()
    for path in flat:
        np.testing.assert_array_equal(back[path], flat[path], err_msg=path)


def test_their_side_round_trip_is_bit_exact():
    model, table = _setup("swiglu_registers")
    tensors = _tensors(_flat(model), table)
    again = _tensors(from_layout(tensors, table), table)
    assert again.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(again[name], tensors[name], err_msg=name)


def test_query_of_a_layer_is_the_right_slice():
    model, table = _setup("swiglu_registers")
    flat = _flat(model)
    key = _tensors(flat, table)["encoder.layer.2.attention.attention.key.weight"]
    ours = flat["backbone/blocks/attn/qkv/kernel"][2, :, 1]
    np.testing.assert_array_equal(key, ours.reshape(24, 24).T)


def test_gate_comes_first():
    model, table = _setup("swiglu_registers")
    flat = _flat(model)
    bias = _tensors(flat, table)["encoder.layer.1.mlp.weights_in.bias"]
    np.testing.assert_array_equal(bias[: bias.size // 2], flat["backbone/blocks/mlp/w_in/bias"][1, 0])


def test_no_layer_scale_is_written_as_ones_and_read_as_none():
    model, table = _setup("mlp_plain_no_layer_scale")
    tensors = _tensors(_flat(model), table)
    assert (tensors["encoder.layer.0.layer_scale1.lambda1"] == 1).all()
    expected = parameter_shapes(model) | {"backbone/patch_embed/kernel": (1, 64, 24)}
    tensors["encoder.layer.1.layer_scale2.lambda1"] = np.full(24, 2.0, np.float32)
    with pytest.raises(LayoutError, match=r"encoder\.layer\.1\.layer_scale2\.lambda1: .*must be 1\.0"):
        from_layout(tensors, table, expected=expected)


def test_unmapped_parameter_of_ours_is_named():
    model, table = _setup("swiglu_registers")
    flat = _flat(model) | {"backbone/rope/frequencies": np.zeros(3)}
    with pytest.raises(LayoutError, match=r"our model .*1 unmapped: backbone/rope/frequencies"):
        _tensors(flat, table)


def test_missing_parameter_of_ours_is_named():
    model, table = _setup("swiglu_registers")
    flat = _flat(model)
    del flat["backbone/norm/scale"]
    with pytest.raises(LayoutError, match=r"our model .*1 missing: backbone/norm/scale"):
        _tensors(flat, table)


def test_missing_and_extra_tensors_of_theirs_are_named():
    model, table = _setup("swiglu_registers")
    tensors = _tensors(_flat(model), table)
    del tensors["encoder.layer.1.norm1.bias"]
    tensors["encoder.layer.3.norm1.bias"] = np.zeros(24)
    match = r"1 missing: encoder\.layer\.1\.norm1\.bias; 1 unmapped: encoder\.layer\.3\.norm1\.bias"
    with pytest.raises(LayoutError, match=match):
        from_layout(tensors, table)


def test_wrong_shapes_are_named():
    model, table = _setup("swiglu_registers")
    flat = _flat(model)
    tensors = _tensors(flat, table)
    expected = parameter_shapes(model) | {"backbone/patch_embed/kernel": (1, 64, 24)}
    name = "encoder.layer.0.attention.attention.value.weight"
    with pytest.raises(LayoutError, match=name.replace(".", r"\.")):
        from_layout({**tensors, name: np.zeros((24, 23))}, table)
    name = "embeddings.position_embeddings"
    with pytest.raises(LayoutError, match=r"position_embeddings: gives backbone/pos_embed of shape \(5, 24\)"):
        from_layout({**tensors, name: np.zeros((1, 5, 24))}, table, expected=expected)
    with pytest.raises(LayoutError, match="leading axis must be the depth 3"):
        to_layout({**flat, "backbone/blocks/norm1/scale": np.zeros((2, 24))}, table)


@pytest.mark.parametrize(
    ("rule", "shape", "theirs"),
    [
        ("d t h e -> t: (h e) d", (6, 3, 2, 3), (6, 6)),
        ("h e d -> d (h e)", (2, 3, 6), (6, 6)),
        ("d g f -> (g f) d", (6, 2, 5), (10, 6)),
        ("c (y x) d -> d c y x", (3, 4, 6), (6, 3, 2, 2)),
        ("r d -> 1 r d", (4, 6), (1, 4, 6)),
        ("d -> 1 1 d", (6,), (1, 1, 6)),
    ],
)
def test_rule_is_its_own_inverse(rule, shape, theirs):
    array = np.arange(np.prod(shape)).reshape(shape)
    parts = Rule(rule, SIZES).forward(array, "ours")
    assert [part.shape for part in parts] == [theirs] * len(parts)
    np.testing.assert_array_equal(Rule(rule, SIZES).backward(parts, ["a"] * len(parts)), array)


@pytest.mark.parametrize(
    ("rule", "shape"), [("d -> d", (5,)), ("d -> d", (6, 1)), ("d t h e -> t: (h e) d", (6, 2, 2, 3))]
)
def test_rule_refuses_another_shape(rule, shape):
    with pytest.raises(LayoutError, match="some/path: found shape"):
        Rule(rule, SIZES).forward(np.zeros(shape), "some/path")


def test_layers_do_not_get_mixed():
    layout = (Entry("w", ("layer.{i}.w",), "a -> a"),)
    array = np.arange(24).reshape(12, 2)
    table = Table(layout, Dims(12, 2, 1, 1))
    tensors = _tensors({"w": array}, table)
    np.testing.assert_array_equal(tensors["layer.10.w"], array[10])
    np.testing.assert_array_equal(from_layout(tensors, table)["w"], array)


def test_flatten_and_unflatten():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
