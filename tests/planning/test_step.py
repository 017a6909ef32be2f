"""A whole plan of a tiny training, on eight fake devices: what it says against what the arrays themselves say."""

import json

import jax
import pytest

from configs import smoke
from cxr_jax import plan as entry
from cxr_jax.config import ConfigError
from cxr_jax.experiments import build
from cxr_jax.planning import report
from cxr_jax.planning.flops import distinct_flops, trace
from cxr_jax.planning.search import search
from cxr_jax.planning.step import Case, batch_shapes, plan_step
from cxr_jax.planning.topology import parse_topology
from cxr_jax.sharding import make_mesh

CANVAS = (48, 40)


def tiny_config():
    config = smoke.get_config()
    config.model.update(image_size=32, width=32, remat="full")
    config.crops.update(global_size=32, local_size=16, num_local=1)
    for head in config.heads.values():
        head.update(hidden=40, bottleneck=24, num_prototypes=64)
    config.objective.prototype_chunks = 2
    return config


@pytest.fixture(scope="module")
def case() -> Case:
    config = tiny_config()
    plain = tiny_config()
    plain.model.remat, plain.objective.prototype_chunks = "none", 1
    experiment = build(config)
    mesh = make_mesh(replica=2, fsdp=4)
    return Case(
        objective=experiment.objective,
        plain=build(plain).objective,
        tx=experiment.tx,
        schedules=experiment.schedules,
        mesh=mesh,
        topology=parse_topology("cpu:8"),
        batch=batch_shapes(mesh, config.batch_size, CANVAS, 0),
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        compute_dtype="float32",
        reduce_dtype="float32",
        options={},
    )


@pytest.fixture(scope="module")
def plan(case) -> dict:
    return plan_step(case) | {"settings": "tiny", "remat": "full"}


def test_bytes_by_kind_are_those_of_the_shards(case, plan):
    """Every kernel in quarters, every vector whole; Adam holds two of each and a count, the teacher one."""
    params = jax.eval_shape(case.objective.init, jax.random.key(0))
    sizes = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    split = ("['kernel']", "['v']")
    held = sum(
        4 * leaf.size // (4 if at.endswith(split) and "patch_embed" not in at else 1) for at, leaf in sizes.items()
    )
    found = plan["bytes_per_device"]
    assert found["params"] == found["teacher"] == held
    assert found["optimiser"] == 2 * held + 4
    assert found["batch"] == 2 * (CANVAS[0] * CANVAS[1] + 2 * 4 + 4)
    assert plan["parameters"]["total"] == sum(leaf.size for leaf in sizes.values())


def test_total_is_the_sum_of_its_parts(plan):
    sizes = plan["bytes_per_device"]
    assert sizes["total"] == sum(sizes[kind] for kind in report.KINDS)
    assert plan["fits"] and sizes["activations"] > 0 and sizes["temporaries"] > 0


def test_recomputation_is_executed_and_not_needed(plan):
    flops = plan["flops_per_step"]
    assert flops["executed"] > 1.2 * flops["model"] > 0
    assert 0 < flops["augmentation"] < flops["executed"]


def test_model_flops_do_not_depend_on_remat_or_chunks(case, plan):
    images = case.batch_size
    batch = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in case.batch.items()}
    params = jax.eval_shape(case.plain.init, jax.random.key(0))
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jax.numpy.zeros((), "int32")))
    traced = trace(jax.value_and_grad(case.plain.loss, has_aux=True), params, params, batch, key, step)
    assert plan["flops_per_step"]["model"] == distinct_flops(traced) - plan["flops_per_step"]["augmentation"]
    assert plan["images_per_device"] == images / 8


def test_collectives_are_about_the_least(plan):
    """The CPU's compiler reduces gradients whole and the losses add their sums; nothing is moved wholesale."""
    found, total = plan["collectives"], plan["collective_bytes"]
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert found["all-gather"]["count"] > 0 and total["between_slices"] == 0
    assert 0.5 * total["least"] < total["total"] < 3 * total["least"]
    assert plan["memory_traffic"] > sum(plan["bytes_per_device"][kind] for kind in ("params", "optimiser", "teacher"))


def test_the_page_and_the_file_hold_the_plan(plan):
    page = "\n".join(report.lines(plan))
    for words in ("cpu:8: 8 devices, mesh replica 2 x fsdp 4 x tensor 1", "2 images per device", "all-gather"):
        assert words in page
    assert "no published peaks" in page
    assert json.loads(json.dumps(plan)) == plan


def test_what_does_not_fit_is_told_by_how_much(plan):
    sizes = {"total": 25e9, "capacity": 16e9, "excess": 9e9}
    page = "\n".join(report.lines(plan | {"fits": False, "bytes_per_device": plan["bytes_per_device"] | sizes}))
    assert "DOES NOT FIT: 9.00 GB too much" in page


# --- the search, on a machine that holds 40 images with everything kept and 100 with nothing ------------------------

HOLDS, SPEED = {"none": 40, "dots": 70, "full": 100}, {"none": 10.0, "dots": 9.0, "full": 8.0}


def toy_plan(remat, batch_size):
    sizes = {"total": float(batch_size), "capacity": float(HOLDS[remat])}
    run = {"images_per_sec": SPEED[remat] * min(batch_size, 64)}
    fits = batch_size <= HOLDS[remat]
    plan = {"remat": remat, "batch_size": batch_size, "images_per_device": batch_size / 8, "fits": fits}
    return plan | {"bytes_per_device": sizes} | ({"run": run} if fits else {})


@pytest.mark.parametrize(("start", "tried"), [(16, [16, 32, 64, 16, 32, 64, 128]), (128, [128, 64, 32, 128, 64])])
def test_search_doubles_or_halves_and_takes_the_fastest(start, tried):
    told = []
    best, rows = search(toy_plan, ("none", "full"), start, 8, told.append)
    assert [row["batch_size"] for row in rows] == tried
    assert (best["remat"], best["batch_size"]) == ("full", 64)
    assert len(told) == len(rows) and any("does not fit" in line for line in told)


def test_a_search_without_a_fit_ends():
    best, rows = search(lambda remat, size: toy_plan(remat, size + 1000), ("none",), 64, 16, lambda line: None)
    assert best is None and [row["batch_size"] for row in rows] == [1064, 1032, 1016]


def test_a_search_from_three_times_the_least_tries_two_and_one():
    _, rows = search(lambda remat, size: toy_plan(remat, size) | {"fits": False}, ("none",), 24, 8, lambda line: None)
    assert [row["batch_size"] for row in rows] == [24, 16, 8]


def test_the_entry_searches_in_whole_groups(monkeypatch):
    """Every device gets whole groups of images; a machine without a memory has nothing to search for."""
    monkeypatch.setattr(entry, "planned", lambda config, *_: toy_plan(config.model.remat, config.batch_size))
    config, topology = tiny_config(), parse_topology("v5e:2x4")
    best = entry.searched(config, topology, jax.devices())
    assert best["batch_size"] % (8 * config.objective.group_size) == 0 and len(best["search"]) > 3
    with pytest.raises(ConfigError, match=r"--search: cpu:8 has no memory"):
        entry.searched(config, parse_topology("cpu:8"), jax.devices())
