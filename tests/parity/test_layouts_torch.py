"""Every layout against its reference with random weights, 1e-5 on every token and logit, in float32.

transformers' own models for Hugging Face's layout; `torch_vit` for DINOv2's, CheXFound's and MAE's, and the shipped
`cxr_torch` for those and for timm's. Sizes: a ViT-S, and a ViT-L of its depth and of a sixteenth of its width.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="the reference is PyTorch; requirements-test.txt installs it")

from cxr_jax.export.contents import Contents, Geometry  # noqa: E402
from cxr_jax.export.folder import read_weights  # noqa: E402
from cxr_jax.export.foreign import Hints  # noqa: E402
from cxr_jax.export.mapping import flatten, unflatten  # noqa: E402
from cxr_jax.export.ours import parameter_shapes  # noqa: E402
from cxr_jax.export.parity import (  # noqa: E402
    TOKENS,
    differences,
    largest,
    our_outputs,
    pixels_for,
    random_images,
    their_outputs,
)
from cxr_jax.models.mae_decoder import MAEDecoder  # noqa: E402
from cxr_jax.models.projection_head import ProjectionHead, prototype_logits  # noqa: E402
from tests.export.tiny import (  # noqa: E402
    DECODER,
    GLORI,
    LINEAR,
    PROJECTION,
    grey_target,
    grid_of,
    random_parts,
    tiny_model,
    write,
)
from tests.parity import torch_vit  # noqa: E402

SIZES = {
    "vit_s": {"width": 384, "depth": 12, "num_heads": 6},
    "narrow_vit_l": {"width": 64, "depth": 24, "num_heads": 16},
}
NETWORKS = {
    "vit_s_mlp_registers": ("vit_s", {"ffn": "mlp"}),
    "vit_s_swiglu": ("vit_s", {"num_registers": 0}),
    "narrow_l_swiglu_registers": ("narrow_vit_l", {}),
    "narrow_l_mlp": ("narrow_vit_l", {"ffn": "mlp", "num_registers": 0}),
}
PX, OTHER_PX = 64, 96
GREY = Geometry("pad", PX)


def trained_scale(options, seed):
    """Weights of the size that training has: matrices N(0, 0.02), LayerScale about 0.5, tokens about 0.5."""
    rng, flat = np.random.default_rng(seed), {}
    for path, shape in parameter_shapes(options).items():
        values = rng.standard_normal(shape)
        if "layer_scale" in path or path.endswith("/scale"):
            values = (0.5 if "layer_scale" in path else 1.0) + 0.1 * values
        else:
            values = values * (0.5 if "token" in path or "pos_embed" in path else 0.02)
        flat[path] = values.astype(np.float32)
    return unflatten(flat)


def model_of(name, **changes):
    size, own = NETWORKS[name]
    return tiny_model(**{"image_size": PX, "patch_size": 16, "layer_scale": 1e-5, **SIZES[size], **own, **changes})


def ours_at(model, network, px):
    images = random_images(px)
    return images, our_outputs(Contents({"teacher": network}, model, GREY), images)


def torch_tokens(reference, images, channels=3, count=1):
    with torch.no_grad():
        pixels = torch.from_numpy(np.repeat(images[:, None], channels, axis=1))
        return {name: part.numpy() for name, part in zip(TOKENS, reference(pixels, count), strict=True)}


@pytest.mark.parametrize(
    ("name", "layout"),
    [("vit_s_mlp_registers", "dinov2"), ("narrow_l_mlp", "dinov2"), ("narrow_l_swiglu_registers", "chexfound")],
)
def test_teacher_and_student_give_their_features_in_dinov2_s_code(tmp_path, name, layout):
    """Strictly loaded by the reference's own names, chunked and not, at the trained and at another resolution."""
    model, chunks = model_of(name), 4 if layout == "chexfound" else 0
    networks = {n: trained_scale({"backbone": model}, i) for i, n in enumerate(("teacher", "student"))}
    write(tmp_path, model, networks, grey_target(layout, PX, chunks=chunks))
    state = {key: torch.from_numpy(array) for key, array in load_file(tmp_path / "model.safetensors").items()}
    reference = torch_vit.DinoVisionTransformer(model, chunks=chunks).eval()
    for network in networks:
        own = {k.removeprefix(f"{network}."): t for k, t in state.items() if k.startswith(f"{network}.")}
        reference.load_state_dict(own, strict=True)
        for px in (PX, OTHER_PX):
            images, ours = ours_at(model, networks[network], px)
            report = differences(ours, torch_tokens(reference, images))
            assert largest(report) < 1e-5, (network, px, report)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit_s_swiglu", "hf"),
        ("narrow_l_swiglu_registers", "hf"),
        ("narrow_l_mlp", "hf"),
        ("narrow_l_swiglu_registers", "timm"),
        ("narrow_l_mlp", "dinov2"),
    ],
)
def test_a_grid_written_for_another_size_gives_our_features(tmp_path, layout, name):
    """Baked for 96 px; transformers itself for Hugging Face, the shipped file for the others."""
    if layout == "hf":
        pytest.importorskip("transformers")
    model, target = model_of(name), grey_target(layout, OTHER_PX)
    network = trained_scale({"backbone": model}, 0)
    write(tmp_path, model, network, target)
    images, ours = ours_at(model, network, OTHER_PX)
    report = differences(ours, their_outputs(tmp_path, target, {}, None, pixels_for(images, GREY, target)))
    assert largest(report) < 1e-5, report


@pytest.mark.parametrize("rule", ["offset", "size", "antialias"])
def test_the_shipped_file_resizes_positions_as_training_does(tmp_path, rule):
    model = model_of("narrow_l_mlp", pos_resize=rule)
    network, target = trained_scale({"backbone": model}, 0), grey_target("dinov2", PX, channels=1)
    write(tmp_path, model, network, target)
    images, ours = ours_at(model, network, OTHER_PX)
    assert largest(differences(ours, their_outputs(tmp_path, target, {}, None, images[:, None]))) < 1e-5


@pytest.mark.parametrize(("ffn", "registers"), [("mlp", 4), ("swiglu", 0)])
def test_rotary_positions_in_transformers_dinov3(tmp_path, ffn, registers):
    pytest.importorskip("transformers")
    model = model_of("narrow_l_mlp", positions="rope", ffn=ffn, num_registers=registers)
    network, target = trained_scale({"backbone": model}, 0), grey_target("hf", PX)
    write(tmp_path, model, network, target)
    for px in (PX, OTHER_PX):
        images, ours = ours_at(model, network, px)
        report = differences(ours, their_outputs(tmp_path, target, {}, None, pixels_for(images, GREY, target)))
        assert largest(report) < 1e-5, (px, report)


@pytest.mark.parametrize("key_bias", [True, False])
def test_transformers_dinov3_gives_its_features_here(tmp_path, key_bias):
    """As published: no key bias, epsilon 1e-5, ImageNet's normalisation."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.DINOv3ViTConfig(
        patch_size=8, image_size=32, num_register_tokens=4, key_bias=key_bias, **sizes
    )
    theirs = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + ("norm" in key and key.endswith("weight")))
    theirs.save_pretrained(tmp_path)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transformers.BitImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path)
    read = read_weights(tmp_path)
    assert read.contents.model["norm_epsilon"] == 1e-5 and read.contents.model["positions"] == "rope"
    images, ours = ours_at(read.contents.model, read.contents.networks["teacher"], 48)
    with torch.no_grad():
        tokens = theirs(torch.from_numpy(pixels_for(images, GREY, read.target))).last_hidden_state.numpy()
    together = np.concatenate([ours["cls"][-1][:, None], ours["registers"][-1], ours["patches"][-1]], axis=1)
    np.testing.assert_allclose(together, tokens, atol=1e-5)


MAE = {"ffn": "mlp", "num_registers": 0, "layer_scale": None, "positions": "sincos"}


def _mae(rng, grid, rows=2, visible=5):
    place = np.stack([rng.permutation(grid**2) for _ in range(rows)])
    return place, np.argsort(place, axis=1)[:, :visible]


def _paint(model, network, images, keep, place):
    """Our encoder on visible patches and our decoder, by their own modules."""
    import jax
    from flax import nnx

    from cxr_jax.models.vit import ViT

    vit, state = nnx.split(nnx.eval_shape(lambda: ViT(**model, rngs=nnx.Rngs(0))))
    decoder, _ = nnx.split(nnx.eval_shape(lambda: MAEDecoder(**DECODER, rngs=nnx.Rngs(0))))
    del state

    @jax.jit
    def run(network):
        (seen,) = nnx.merge(vit, network["backbone"])((jnp.asarray(images),), visible=(jnp.asarray(keep),))
        return seen.patches[0], nnx.merge(decoder, network["decoder"])(seen.cls[0], seen.patches[0], jnp.asarray(place))

    with jax.default_matmul_precision("highest"):
        return run(network)


@pytest.mark.parametrize("layout", ["mae", "hf"])
@pytest.mark.parametrize("channels", [1, 3])
def test_masked_autoencoders_encode_and_paint_alike(tmp_path, layout, channels):
    """Visible tokens and painted pixels; every channel of a painted patch is our grey one."""
    model = tiny_model(**MAE)
    network, target = random_parts({"backbone": model, "decoder": DECODER}), grey_target(layout, channels=channels)
    write(tmp_path, model, network, target, {"decoder": DECODER})
    place, keep = _mae(np.random.default_rng(0), 4)
    images = random_images(32)
    pixels = torch.from_numpy(pixels_for(images, GREY, target))
    if layout == "mae":
        reference = torch_vit.MaskedAutoencoderViT(model, DECODER, channels).eval()
        state = load_file(tmp_path / "model.safetensors")
        reference.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=True)
        with torch.no_grad():
            latent = reference.encode(pixels, torch.from_numpy(keep))
            painted = reference.decode(latent, torch.from_numpy(place))
    else:
        transformers = pytest.importorskip("transformers")
        reference = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
        reference.config.mask_ratio = reference.vit.embeddings.config.mask_ratio = 1 - (5 + 1e-3) / 16
        with torch.no_grad():
            noise = torch.from_numpy(place.astype(np.float32))
            latent = reference.vit(pixels, noise=noise).last_hidden_state
            painted = reference(pixels, noise=noise).logits
    patches, ours = _paint(model, network, images, keep, place)
    np.testing.assert_allclose(patches, latent[:, 1:], atol=1e-5)
    painted = painted.numpy().reshape(2, 16, 64, channels)
    for channel in range(channels):
        np.testing.assert_allclose(ours, painted[..., channel], atol=1e-5)


def test_a_masked_autoencoder_saved_by_transformers_paints_here(tmp_path):
    """A real save_pretrained, whatever the installed version calls the decoder's blocks; positions as published."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    sizes |= {f"decoder_{k}": v for k, v in zip(sizes, (16, 2, 2, 64), strict=True)}
    config = transformers.ViTMAEConfig(
        patch_size=8, image_size=32, layer_norm_eps=1e-6, mask_ratio=1 - (5 + 1e-3) / 16, **sizes
    )
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if not key.endswith("decoder_pos_embed"):
                parameter.copy_(0.2 * torch.randn(parameter.shape) + ("norm" in key and key.endswith("weight")))
    # A model made from a configuration has zeros there; published ones have this table.
    theirs.decoder.initialize_weights(16)
    theirs.save_pretrained(tmp_path)
    hints = Hints(mean=(0.5,) * 3, std=(0.25,) * 3)  # save_pretrained writes no preprocessor
    read = read_weights(tmp_path, hints)
    network, images = read.contents.networks["teacher"], random_images(32)
    place, keep = _mae(np.random.default_rng(0), 4)
    with torch.no_grad():
        pixels = torch.from_numpy(pixels_for(images, GREY, read.target))
        painted = theirs(pixels, noise=torch.from_numpy(place.astype(np.float32))).logits.numpy()
    _, ours = _paint(read.contents.model, network, images, keep, place)
    # Of a pixel's channels ours is the mean.
    np.testing.assert_allclose(ours, painted.reshape(2, 16, 64, 3).mean(-1), atol=1e-5)


def test_projection_heads_give_their_logits(tmp_path):
    import jax
    from flax import nnx

    model, parts = tiny_model(), {"dino_head": PROJECTION, "ibot_head": {**PROJECTION, "bottleneck": 6}}
    network = jax.tree.map(jnp.asarray, random_parts({"backbone": model, **parts}))
    write(tmp_path, model, network, grey_target("dinov2"))
    state = load_file(tmp_path / "model.safetensors")
    tokens = np.random.default_rng(0).standard_normal((7, 24)).astype(np.float32)
    for part, sizes in parts.items():
        theirs = torch_vit.DINOHead(**sizes).eval()
        own = {k.removeprefix(f"{part}."): torch.from_numpy(t) for k, t in state.items() if k.startswith(part)}
        theirs.load_state_dict(own, strict=True)
        head = nnx.merge(
            nnx.split(nnx.eval_shape(lambda s=sizes: ProjectionHead(**s, rngs=nnx.Rngs(0))))[0], network[part]
        )
        with jax.default_matmul_precision("highest"):
            prototypes = network[part]["prototypes"]
            ours = prototype_logits(head(jnp.asarray(tokens)), prototypes["v"], prototypes["g"], "float32")
        with torch.no_grad():
            np.testing.assert_allclose(ours, theirs(torch.from_numpy(tokens)), atol=1e-5)


@pytest.mark.parametrize("layout", ["hf", "dinov2", "timm", "chexfound"])
@pytest.mark.parametrize("options", [GLORI, {**GLORI, "concat_cls": False}, LINEAR], ids=["glori", "no_cls", "linear"])
def test_heads_give_their_logits_through_the_shipped_file(tmp_path, layout, options):
    """The shipped file on PyTorch's features; and CheXFound's classifier, under its own names, on the same."""
    if layout == "hf":
        pytest.importorskip("transformers")
    model, rates = tiny_model(), [2e-3, 0.1] if layout == "chexfound" else [2e-3]
    network = random_parts({"backbone": model, "head": options})
    network["head"] = grid_of(network["head"], len(rates))
    facts, target = {"targets": list("abcde"), "learning_rates": rates}, grey_target(layout)
    write(tmp_path, model, network, target, {"head": options}, facts)
    contents = Contents({"teacher": network}, model, GREY, {"head": options}, facts)
    images = random_images(32)
    ours = our_outputs(contents, images)
    noted = {"options": {"head": options}, "learning_rates": rates}
    theirs = their_outputs(tmp_path, target, noted, None, pixels_for(images, GREY, target), options["blocks"])
    assert largest(differences(ours, theirs)) < 1e-5 and theirs["logits"].shape == (2, 5)
    if layout == "chexfound" and options["name"] == "glori":
        sizes = {"width": 16, "heads": 8, "ffn": 12, "concat_cls": options["concat_cls"]}
        classifier = torch_vit.GLoRI(options["blocks"] * 24, 5, **sizes).eval()
        at = "classifiers_dict.linear:blocks=2:avgpool=False:lr=0_0020000000."
        state = load_file(tmp_path / "classifiers.safetensors")
        own = {k.removeprefix(at): torch.from_numpy(t) for k, t in state.items() if k.startswith(at)}
        classifier.load_state_dict(own, strict=True)
        with torch.no_grad():
            logits = classifier(torch.from_numpy(theirs["cls"]), torch.from_numpy(theirs["patches"]))
        np.testing.assert_allclose(ours["logits"], logits, atol=1e-5)


def test_a_swapped_gate_would_be_seen(tmp_path):
    """The comparisons above can fail."""
    model = tiny_model()
    network = random_parts({"backbone": model})
    target = grey_target("dinov2")
    write(tmp_path, model, network, target)
    gates = network["backbone"]["blocks"]["mlp"]["w_in"]["kernel"]
    gates[:] = gates[:, :, ::-1].copy()
    images, ours = ours_at(model, network, 32)
    assert (
        largest(differences(ours, their_outputs(tmp_path, target, {}, None, pixels_for(images, GREY, target)))) > 1e-2
    )
    assert len(flatten(network)) == 22
