"""The CheXFound configs against a table of what the paper and its released code say. Shapes only, no memory."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from cxr_jax.checkpoint import shapes_by_path
from cxr_jax.experiments import build
from cxr_jax.sharding import path_name

# stage: global px, local px, batch, learning rate, images a GPU
STAGES = {
    "vitl16": (224, 96, 304, 1.09e-4, 38),
    "vitl16_336": (336, 128, 96, 6.1e-5, 12),
    "vitl16_448": (448, 128, 112, 6.6e-5, 14),
    "vitl16_512": (512, 144, 80, 5.6e-5, 10),
}
STEPS = 250_000


def config_of(name):
    return importlib.import_module(f"configs.pretrain.{name}").get_config()


@pytest.fixture(scope="module")
def experiments():
    return {name: build(config_of(f"chexfound_{name}")) for name in (*STAGES, "vitl16_pod")}


@pytest.fixture(scope="module")
def shapes(experiments):
    """Parameters of every stage, as shapes."""
    return {name: jax.eval_shape(e.objective.init, jax.random.key(0)) for name, e in experiments.items()}


def by_path(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def at(schedule, steps):
    return np.array([float(schedule(jnp.asarray(step))) for step in steps])


def cosine(start, end, share):
    return end + (start - end) * 0.5 * (1 + np.cos(np.pi * np.asarray(share)))


@pytest.mark.parametrize("name", STAGES)
def test_learning_rate_at_its_breakpoints(experiments, name):
    """0 at step 0, the peak at the last of 25,000 warm-up steps, half-way down in the middle of the rest, 1e-6."""
    *_, batch, rounded, _ = STAGES[name]
    peak = 2e-4 * np.sqrt(batch / 1024)
    assert peak == pytest.approx(rounded, rel=8e-3), "the source rounds to two or three digits"
    steps = [0, 12_500, 24_999, 25_000, 137_500, STEPS - 1, STEPS]
    fall = cosine(peak, 1e-6, (np.array(steps[3:]) - 25_000) / 225_000)
    expected = [0.0, peak * 12_500 / 24_999, peak, *fall]
    # Near the end float32 takes the cosine of almost pi: 1e-4 of 1e-6.
    found = at(experiments[name].schedules["learning_rate"], steps)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[-1] == pytest.approx(1e-6)


@pytest.mark.parametrize("name", STAGES)
def test_the_other_schedules_at_their_breakpoints(experiments, name):
    experiment, objective = experiments[name], experiments[name].objective
    steps = [0, 125_000, STEPS - 1, STEPS]
    shares = np.array(steps) / STEPS
    decay = at(experiment.schedules["weight_decay"], steps)
    np.testing.assert_allclose(decay, cosine(0.04, 0.2, shares), rtol=1e-5)
    np.testing.assert_allclose(at(objective.ema, steps), cosine(0.994, 1.0, shares), rtol=1e-6)
    temperature = at(objective.teacher_temperature, [0, 37_500, 74_999, 75_000, STEPS - 1])
    np.testing.assert_allclose(temperature, [0.04, 0.04 + 0.03 * 37_500 / 74_999, 0.07, 0.07, 0.07], rtol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_crops_losses_and_sizes(experiments, name):
    large, small, batch, _, group = STAGES[name]
    config, objective = config_of(f"chexfound_{name}"), experiments[name].objective
    assert (config.batch_size, config.total_steps, config.objective.group_size) == (batch, STEPS, group)
    assert [crop.size for crop in objective.crops] == [large] * 2 + [small] * 8
    assert [crop.scale for crop in objective.crops] == [(0.32, 1.0)] * 2 + [(0.05, 0.32)] * 8
    # As released: the second global crop is blurred with 0.9, the first never.
    assert [crop.blur_prob for crop in objective.crops] == [0.0, 0.9] + [0.5] * 8
    assert [crop.solarise_prob for crop in objective.crops] == [0.0, 0.2] + [0.0] * 8
    for crop in objective.crops:
        assert (crop.flip_prob, crop.jitter_prob, crop.brightness, crop.contrast) == (0.5, 0.8, 0.4, 0.4)
        assert crop.blur_sigma == (0.1, 2.0)
    assert (objective.dino_weight, objective.ibot_weight, objective.koleo_weight) == (1.0, 3.0, 0.1)
    assert objective.student_temperature == 0.1 and objective.centring == "sinkhorn"
    assert tuple(objective.mask_ratio) == (0.1, 0.5)
    model = objective.model
    sizes = {"width": 1024, "depth": 24, "num_heads": 16, "patch_size": 16, "num_registers": 4, "drop_path": 0.4}
    sizes |= {"layer_scale": 1e-5, "ffn": "swiglu", "image_size": large, "pos_resize": "offset", "remat": "full"}
    assert {key: model[key] for key in sizes} == sizes
    dtypes = {"param_dtype": "float32", "compute_dtype": "bfloat16", "reduce_dtype": "float32"}
    assert {key: model[key] for key in dtypes} == dtypes
    optimiser = config.optim
    assert (tuple(optimiser.betas), optimiser.clip_norm) == ((0.9, 0.999), 3.0)
    assert (optimiser.patch_embed_lr_mult, optimiser.layer_decay, optimiser.frozen_prototypes_frac) == (0.2, 1.0, 0.01)


def test_the_last_layer_of_the_heads_waits_for_2500_steps(experiments):
    params = {name: {"prototypes": {"v": jnp.ones((2, 2))}, "bias": jnp.ones(2)} for name in ("dino_head", "ibot_head")}
    params["backbone"] = {"cls_token": jnp.ones(2)}
    tx, moved = experiments["vitl16"].tx, {}
    for step in (1, 2_499, 2_500):
        updates, _ = tx.update(params, tx.init(params), params, step=jnp.asarray(step))
        moved[step] = {path for path, leaf in by_path(updates).items() if np.asarray(leaf).any()}
    heads = {"dino_head/prototypes/v", "ibot_head/prototypes/v"}
    assert moved[1] == moved[2_499] == set(by_path(params)) - heads
    assert moved[2_500] == set(by_path(params))


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree)) / 1e6


def test_parameter_counts(shapes):
    """Millions. The reference embeds three channels and we one, which is two patches of 256 pixels x 1,024 fewer.

    Positions alone differ between stages: 304.6 at 512 px.
    """
    first, channels = shapes["vitl16"], 2 * 256 * 1024 / 1e6
    assert count(first["backbone"]) + channels == pytest.approx(303.8, abs=0.05)
    assert count(shapes["vitl16_512"]["backbone"]) + channels == pytest.approx(304.6, abs=0.05)
    assert count(first["dino_head"]) == pytest.approx(57.5, abs=0.05)
    assert count(first["ibot_head"]) == pytest.approx(40.5, abs=0.05)
    assert first["dino_head"]["prototypes"]["v"].shape == (384, 131_072)
    assert first["ibot_head"]["prototypes"]["v"].shape == (256, 131_072)
    assert first["backbone"]["blocks"]["mlp"]["w_out"]["kernel"].shape == (24, 2736, 1024)


@pytest.mark.parametrize("name", [name for name in STAGES if name != "vitl16"])
def test_a_stage_takes_all_of_stage_one_with_positions_resized(shapes, name):
    config = config_of(f"chexfound_{name}")
    assert (config.init_from, config.init_network) == ("runs/chexfound_vitl16", "teacher")
    assert (config.init_parts, config.init_step, config.schedules_from) == ("networks", -1, "restart")
    first, later = shapes_by_path(shapes["vitl16"]), shapes_by_path(shapes[name])
    assert first.keys() == later.keys()
    grid = STAGES[name][0] // 16
    assert {key: shape for key, shape in later.items() if first[key] != shape} == {
        "backbone/pos_embed": (1 + grid**2, 1024)
    }


def test_the_pod_recipe_keeps_images_forgetting_and_fractions(experiments):
    """B = 4,096: 76 M images, the rate by the root rule, momentum ^ (B / 304), groups that 128 and 256 chips share."""
    config, experiment = config_of("chexfound_vitl16_pod"), experiments["vitl16_pod"]
    assert config.batch_size == 4096 and config.total_steps == 18_555
    assert abs(config.batch_size * config.total_steps - 76e6) < 4096
    warmup = round(0.1 * 18_555)
    rate = at(experiment.schedules["learning_rate"], [0, warmup - 1, 18_555])
    np.testing.assert_allclose(rate, [0.0, 4e-4, 1e-6], rtol=1e-5)
    start = float(experiment.objective.ema(jnp.asarray(0)))
    assert start == pytest.approx(np.exp(np.log(0.994) * 4096 / 304), rel=1e-6)
    for chips in (128, 256):
        assert (4096 / chips) % config.objective.group_size == 0
    assert config.mesh.to_dict() == {"replica": -1, "fsdp": 16, "tensor": 1}
    single, pod = config_of("chexfound_vitl16").to_dict(), config.to_dict()
    for section in ("model", "heads", "crops", "optim", "dtypes"):
        assert single[section] == pod[section]


PRETRAINING = ("small_cxr", "small_dino", *(f"chexfound_{name}" for name in (*STAGES, "vitl16_pod")))


@pytest.mark.parametrize("name", ("smoke", *PRETRAINING))
def test_every_parameter_stands_in_every_table(name):
    """The optimiser refuses a parameter that no pattern covers."""
    config = smoke.get_config() if name == "smoke" else config_of(name)
    experiment = build(config)
    params = jax.eval_shape(experiment.objective.init, jax.random.key(0))
    state = jax.eval_shape(experiment.tx.init, params)
    step = jax.ShapeDtypeStruct((), "int32")
    updates, _ = jax.eval_shape(
        lambda *args, step: experiment.tx.update(*args, step=step), params, state, params, step=step
    )
    assert shapes_by_path(updates) == shapes_by_path(params)
