"""Every layout: what goes out comes back bit for bit, and hostile files are refused in one line, by name."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cxr_jax.export.channels import IMAGENET
from cxr_jax.export.contents import Contents, Geometry
from cxr_jax.export.folder import read_weights, write_folder
from cxr_jax.export.foreign import Hints
from cxr_jax.export.layouts import Target
from cxr_jax.export.mapping import flatten
from cxr_jax.export.rules import LayoutError
from tests.export.tiny import (
    DECODER,
    GLORI,
    LINEAR,
    PROJECTION,
    assert_same,
    grey_target,
    grid_of,
    random_parts,
    tiny_model,
    write,
)

HEADS = {"dino_head": PROJECTION, "ibot_head": {**PROJECTION, "bottleneck": 6}}
MAE = {"ffn": "mlp", "num_registers": 0, "layer_scale": None, "positions": "sincos"}
# name: arguments of ViT that differ, other parts, layouts that hold the network
NETWORKS = {
    "swiglu_registers": ({}, HEADS, ("hf", "dinov2", "chexfound")),
    "mlp_registers": ({"ffn": "mlp", "num_registers": 2}, HEADS, ("hf", "dinov2", "chexfound")),
    "swiglu_plain": ({"num_registers": 0}, {}, ("hf", "dinov2", "chexfound", "timm")),
    "mlp_plain_no_layer_scale": (
        {"ffn": "mlp", "num_registers": 0, "layer_scale": None},
        HEADS,
        ("hf", "dinov2", "chexfound", "timm", "mae"),
    ),
    "mae": (MAE, {"decoder": DECODER}, ("hf", "dinov2", "chexfound", "timm", "mae")),
    "mae_encoder": (MAE, {}, ("hf", "timm", "mae")),
    "rope": ({"positions": "rope", "ffn": "mlp"}, HEADS, ("hf",)),
    "rope_swiglu_no_registers": ({"positions": "rope", "num_registers": 0}, {}, ("hf",)),
    "another_epsilon": ({"norm_epsilon": 1e-5}, {}, ("hf",)),
}
CASES = [(name, layout) for name, (_, _, layouts) in NETWORKS.items() for layout in layouts]


def network_of(name):
    changes, parts, _ = NETWORKS[name]
    model = tiny_model(**changes)
    return model, random_parts({"backbone": model, **parts}), {k: v for k, v in parts.items() if k == "decoder"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_tensor_comes_back_bit_for_bit(tmp_path, name, layout, channels):
    model, network, options = network_of(name)
    written = write(tmp_path, model, network, grey_target(layout, channels=channels), options)
    read = read_weights(tmp_path)
    assert_same(read.contents.networks["teacher"], network)
    assert read.contents.model == model
    assert read.tensors == sum(written.files.values())


@pytest.mark.parametrize("name", ["swiglu_registers", "mlp_registers"])
def test_timm_merges_cls_with_its_position_and_keeps_the_rest(tmp_path, name):
    model, network, options = network_of(name)
    write(tmp_path, model, network, grey_target("timm"), options)
    back = read_weights(tmp_path).contents.networks["teacher"]
    cls, positions = network["backbone"].pop("cls_token"), network["backbone"].pop("pos_embed")
    np.testing.assert_array_equal(back["backbone"].pop("cls_token"), cls + positions[0])
    found = back["backbone"].pop("pos_embed")
    np.testing.assert_array_equal(found[1:], positions[1:])
    assert not found[0].any()
    assert_same(back, network)


@pytest.mark.parametrize("layout", ["dinov2", "chexfound"])
@pytest.mark.parametrize("chunks", [0, 2])
def test_teacher_and_student_in_one_file_chunked_or_not(tmp_path, layout, chunks):
    model = tiny_model(depth=5)
    networks = {n: random_parts({"backbone": model, **HEADS}, i) for i, n in enumerate(("teacher", "student"))}
    write(tmp_path, model, networks, grey_target(layout, chunks=chunks))
    names = load_file(tmp_path / "model.safetensors")
    last = "student.backbone.blocks.2.4.norm1.bias" if chunks else "student.backbone.blocks.4.norm1.bias"
    assert last in names and "teacher.ibot_head.last_layer.weight_g" in names
    back = read_weights(tmp_path).contents.networks
    for network in networks:
        assert_same(back[network], networks[network])
    with pytest.raises(LayoutError, match="--network=both: legal with --format=dinov2, chexfound"):
        write(tmp_path, model, networks, grey_target("timm"))


@pytest.mark.parametrize("layout", ["hf", "dinov2", "timm"])
@pytest.mark.parametrize("options", [GLORI, LINEAR], ids=["glori", "linear"])
def test_a_fine_tuned_head_lies_beside_and_comes_back(tmp_path, layout, options):
    model = tiny_model(num_registers=0)
    network = random_parts({"backbone": model, "head": options})
    network["head"] = grid_of(network["head"])
    facts = {"targets": list("abcde"), "learning_rates": [1e-3]}
    write(tmp_path, model, network, grey_target(layout), {"head": options}, facts)
    contents = read_weights(tmp_path).contents
    assert_same(contents.networks["teacher"], network)
    assert contents.options["head"] == options and contents.facts["targets"] == list("abcde")


@pytest.mark.parametrize("options", [GLORI, {**GLORI, "concat_cls": False}, LINEAR], ids=["cls", "no_cls", "linear"])
def test_chexfound_holds_the_whole_grid_of_classifiers(tmp_path, options):
    model, rates = tiny_model(), [1e-5, 2e-3, 0.1]
    network = random_parts({"backbone": model, "head": options})
    network["head"] = grid_of(network["head"], 3)
    facts = {"targets": list("abcde"), "learning_rates": rates}
    write(tmp_path, model, network, grey_target("chexfound"), {"head": options}, facts)
    name = f"classifiers_dict.linear:blocks={options['blocks']}:avgpool={options['name'] == 'linear'}:lr=0_0020000000"
    last = "linear.bias" if options["name"] == "linear" else "decoder.duplicate_pooling_bias"
    assert f"{name}.{last}" in load_file(tmp_path / "classifiers.safetensors")
    assert_same(read_weights(tmp_path).contents.networks["teacher"], network)
    with pytest.raises(LayoutError, match=r"learning rates 1e-05, 0\.002, 0\.1; choose one by --learning_rate"):
        write(tmp_path, model, network, grey_target("hf"), {"head": options}, facts)


def test_patch_embedding_through_imagenet_s_normalisation_is_within_two_ulp(tmp_path):
    model, network, _ = network_of("swiglu_plain")
    contents = Contents({"teacher": network}, model, Geometry("pad", 32))
    write_folder(tmp_path, contents, Target("dinov2", 32, *IMAGENET))
    back = read_weights(tmp_path).contents.networks["teacher"]["backbone"]
    kernel, found = (tree["patch_embed"].pop("kernel") for tree in (network["backbone"], back))
    assert np.max(np.abs(found - kernel) / np.spacing(np.abs(kernel))) <= 2
    # The bias passes through a sum over the patch's weights, whose rounding is that sum's, not the bias's own.
    biases = [tree["patch_embed"].pop("bias") for tree in (network["backbone"], back)]
    np.testing.assert_allclose(*biases, atol=1e-6)
    assert_same(back, network["backbone"])


def bare(tmp_path, name="swiglu_registers", layout="dinov2", parts=True):
    """One file without a word about it, as somebody else would give it."""
    model, network, options = network_of(name)
    network = network if parts else {"backbone": network["backbone"]}
    write(tmp_path, model, network, grey_target(layout), options)
    file = tmp_path / "weights.safetensors"
    (tmp_path / "model.safetensors").rename(file)
    return file, model, network


OURS = Hints(num_heads=2, pos_resize="offset", mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(("name", "layout"), [c for c in CASES if c[1] != "hf" and c[0] != "another_epsilon"])
def test_a_bare_file_is_recognised(tmp_path, name, layout):
    file, model, network = bare(tmp_path, name, layout)
    decodes = layout == "mae" and "decoder" in network
    read = read_weights(file, dataclasses.replace(OURS, decoder_heads=2 if decodes else None))
    assert {**read.contents.model, "layer_scale": model["layer_scale"]} == model and read.assumed == ()
    held = {"backbone": network["backbone"], **{k: v for k, v in network.items() if k in HEADS or layout == "mae"}}
    if layout in ("timm", "mae"):
        held["backbone"]["mask_token"] = np.zeros_like(held["backbone"]["mask_token"])
        held = {part: tree for part, tree in held.items() if part not in HEADS}
    elif "decoder" in network:
        held.pop("decoder", None)
    assert_same(read.contents.networks["teacher"], held)


def test_what_a_bare_file_does_not_say_is_assumed_aloud(tmp_path):
    file, _, _ = bare(tmp_path)
    with pytest.raises(LayoutError, match="width 24 does not divide into 0 heads; pass --num_heads"):
        read_weights(file)
    read = read_weights(file, Hints(num_heads=2))
    assert read.assumed == ("pos_resize=antialias", "normalisation of ImageNet")
    assert read.target.mean == IMAGENET[0]
    with pytest.raises(LayoutError, match="holds no decoder; leave --decoder_heads=2 out"):
        read_weights(file, dataclasses.replace(OURS, decoder_heads=2))


FAULTS = {
    "missing": "1 missing: blocks.2.attn.qkv.bias",
    "missing_head": "1 missing: ibot_head.mlp.2.weight",
    "missing_first": "1 missing: pos_embed",
    "extra": "1 unmapped: blocks.1.adapter",
    "shape": "blocks.1.mlp.w3.weight",
    "shape_head": "dino_head.last_layer.weight_g",
    "shape_grid": "pos_embed is for 17 patches; legal are square grids",
    "half_written": "not a readable safetensors file",
    "empty": "not a readable safetensors file",
    "text": "not a readable safetensors file",
    "other": "of no layout known here",
    "integers": "has dtype I64",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_files_are_refused_in_one_line(tmp_path, fault):
    file, _, _ = bare(tmp_path)
    t = load_file(file)
    gone = {
        "missing": "backbone.blocks.2.attn.qkv.bias",
        "missing_head": "ibot_head.mlp.2.weight",
        "missing_first": "backbone.pos_embed",
    }
    t.pop(gone.get(fault), None)
    new = {
        "extra": {"backbone.blocks.1.adapter": np.zeros(3, np.float32)},
        "shape": {"backbone.blocks.1.mlp.w3.weight": np.zeros((24, 60), np.float32)},
        "shape_head": {"dino_head.last_layer.weight_g": np.zeros((19, 1), np.float32)},
        "shape_grid": {"backbone.pos_embed": np.zeros((1, 18, 24), np.float32)},
        "integers": {"backbone.cls_token": np.zeros((1, 1, 24), np.int64)},
    }
    tensors = {"x": np.zeros(3, np.float32)} if fault == "other" else t | new.get(fault, {})
    save_file(tensors, file)
    if fault == "half_written":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif fault in ("empty", "text"):
        file.write_bytes(b"" if fault == "empty" else b"no weights " * 100)
    with pytest.raises(LayoutError) as caught:
        read_weights(file, OURS)
    (line,) = str(caught.value).splitlines()
    assert FAULTS[fault] in line and str(file) in line, line
    if fault == "extra":
        assert read_weights(file, OURS, allow=("blocks.1.adapter",)).left_out == ("blocks.1.adapter",)


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["torch", "plain", "half", "text"])
def test_a_pickle_with_code_runs_nothing(tmp_path, kind):
    torch = pytest.importorskip("torch")
    file, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"model": {"cls_token": torch.zeros(1, 1, 8), "extra": Bomb(trace)}}
    if kind == "plain":
        file.write_bytes(pickle.dumps(Bomb(trace)))
    elif kind == "text":
        file.write_bytes(b"hello")
    else:
        torch.save(content if kind == "torch" else {"cls_token": torch.zeros(999)}, file)
    if kind == "half":
        file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(LayoutError) as caught:
        read_weights(file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(file)) and not trace.exists()
    words = {"torch": "its pickle calls", "plain": "refused: it is more than weights"}.get(
        kind, "not a readable PyTorch file"
    )
    assert words in line, line
    assert len(line) < 400


@pytest.mark.parametrize("wrapped", ["flat", "teacher", "model", "both"])
def test_pth_files_of_training_are_read(tmp_path, wrapped):
    """With what DINOv2's and MAE's own checkpoints hold beside weights; half precision is read as it is."""
    torch = pytest.importorskip("torch")
    from argparse import Namespace

    file, _, network = bare(tmp_path)
    state = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    both = {f"{n}.{k}": t for n in ("student", "teacher") for k, t in state.items()} | {
        "dino_loss.center": torch.ones(1, 20)
    }
    content = {
        "flat": {k: t.bfloat16() for k, t in state.items()},
        "teacher": {"teacher": {f"module.{k}": t for k, t in state.items()}},
        "model": {"model": state, "optimizer": {"lr": 1.0}, "epoch": 3, "args": Namespace(lr=1.0)},
        "both": {"model": both},
    }[wrapped]
    torch.save(content, tmp_path / "weights.pth")
    read = read_weights(tmp_path / "weights.pth", OURS)
    assert set(read.contents.networks) == ({"teacher", "student"} if wrapped == "both" else {"teacher"})
    assert read.left_out == (("dino_loss.center",) if wrapped == "both" else ())
    for found in read.contents.networks.values():
        if wrapped == "flat":
            # 8 bits of mantissa; the patch embedding is a sum of three such numbers.
            for path, leaf in flatten(found).items():
                np.testing.assert_allclose(leaf, flatten(network)[path], rtol=2**-7, atol=2e-3)
        else:
            assert_same(found, network)


def test_a_folder_in_several_files_is_read(tmp_path):
    import json

    model, network, _ = network_of("swiglu_plain")
    write(tmp_path, model, network, grey_target("hf"))
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    parts = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(parts.values()):
        save_file({name: t for name, t in tensors.items() if parts[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert_same(read_weights(tmp_path).contents.networks["teacher"], network)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("dinov2", {"positions": "rope"}, "model.positions='rope' cannot be written as --format=dinov2"),
        ("mae", {}, "model.ffn='swiglu' cannot be written as --format=mae; it holds 'mlp'"),
        ("timm", {"norm_epsilon": 1e-5}, "model.norm_epsilon=1e-05 cannot be written as --format=timm"),
        ("dinov2", {"depth": 3, "chunks": 4}, "--block_chunks=4: legal are 0, for none, up to the depth 3"),
    ],
)
def test_what_a_layout_cannot_express_is_refused(tmp_path, layout, changes, words):
    chunks = changes.pop("chunks", 0) if "chunks" in changes else 0
    model = tiny_model(**{k: v for k, v in changes.items() if k != "chunks"})
    network = random_parts({"backbone": model})
    with pytest.raises(LayoutError) as caught:
        write(tmp_path, model, network, grey_target(layout, chunks=chunks))
    assert words in str(caught.value)


def test_arrays_are_made_one_at_a_time():
    """What is written never exists twice: before anything is asked for, no copy was made."""
    from cxr_jax.export.layouts import backbone_table, dress
    from cxr_jax.export.mapping import to_layout

    model, network, options = network_of("swiglu_plain")
    flat, _ = dress(
        {f"backbone/{p}": a for p, a in flatten(network["backbone"]).items()}, model, options, grey_target("hf")
    )
    tensors = to_layout(flat, backbone_table(model, grey_target("hf"), False))
    source = flat["backbone/blocks/mlp/w_out/kernel"]
    source[1] = 7.0
    assert (tensors["encoder.layer.1.mlp.weights_out.weight"].make() == 7).all()
    assert len(jax.tree.leaves(flat)) < len(tensors)
