"""Runs that start from other runs: stages, branches, public weights. All through the entry's own `main`.

One tiny pretraining of four steps is the source of everything; whatever trains further shares its sizes.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from configs.finetune import linear
from cxr_jax import checkpoint, init_from, train
from cxr_jax import config as door
from cxr_jax.config import ConfigError
from cxr_jax.experiments import build, prepare
from cxr_jax.metrics import is_clock
from cxr_jax.models.positions import resize_positions
from cxr_jax.objectives.self_distillation import SelfDistillation
from cxr_jax.sharding import make_mesh
from cxr_jax.state import init_state
from tests.export.test_folder import _write
from tests.export.tiny import random_backbone, tiny_model
from tests.smoke.test_training_configs import run

STEPS = 4
SAVES_ALL = {"every_steps": 2, "keep": 10}


def tiny(dataset, **changes):
    """The smoke config at 32 px, width 24, with schedules that know no end, so that a longer run is the same run."""
    config = smoke.get_config()
    config.batch_size, config.total_steps, config.data.path = 8, STEPS, str(dataset)
    config.model.update(image_size=32, width=24, layer_scale=1.0)
    config.model.update({"patch_size": 8})
    config.crops.update(global_size=32, local_size=16, num_local=1)
    for head in config.heads.values():
        head.update(hidden=16, bottleneck=8, num_prototypes=16)
    config.objective.update(ema=(0.9, 0.9), teacher_temperature_warmup_frac=0.0)
    config.optim.update(schedule="constant_cooldown", warmup_frac=0.0, cooldown_frac=0.0, weight_decay=(0.1, 0.1))
    config.optim.frozen_prototypes_frac = 0.0
    config.checkpoint.update(SAVES_ALL)
    config.log.update(every_steps=1, tensorboard=False)
    config.update_from_flattened_dict(changes)
    config.lock()
    return config


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def trained(phantom_dataset, tmp_path_factory, one_device, compiled_once):
    """A function that trains in a new folder and returns `(folder, metrics without clocks)`."""

    def go(workdir=None, **changes):
        workdir = workdir or tmp_path_factory.mktemp("run") / "run"
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(prepare, "make_mesh", lambda **shape: one_device)
            # Pictures prove nothing here and take their time to compile.
            monkeypatch.setattr(SelfDistillation, "pictures", lambda *_: [[jnp.zeros((4, 4))]])
            # The lock of a run ends with its process, which here is that of all runs.
            monkeypatch.setattr(door, "lock_workdir", lambda workdir: None)
            lines = run(tiny(phantom_dataset, **changes), workdir, monkeypatch)
        return workdir, [{key: v for key, v in line.items() if not is_clock(key)} for line in lines]

    return go


@pytest.fixture(scope="module")
def source(trained):
    """The run of four steps that others start from."""
    return trained()


def start(dataset, mesh, **changes):
    """The state with which a run of these changes begins, and its report; nothing is trained."""
    experiment = build(tiny(dataset, **changes))
    fresh = init_state(experiment.objective, experiment.tx, mesh, jax.random.key(7))
    before = jax.tree.map(np.asarray, fresh)
    return experiment.start(fresh), before


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def differ(tree, other):
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))


STAGE_TWO = {"model.image_size": 48, "crops.global_size": 48}


def test_both_networks_of_a_stage_are_the_teacher_with_positions_resized(source, phantom_dataset, one_device):
    run_dir, _ = source
    begun, fresh = start(phantom_dataset, one_device, init_from=str(run_dir), **STAGE_TWO)
    teacher, student = (checkpoint.read_item(run_dir, item) for item in ("targets", "params"))
    assert differ(teacher, student), "a teacher equal to the student would prove nothing"
    positions = teacher["backbone"].pop("pos_embed")
    for network in (begun.state.params, begun.state.targets):
        found = network["backbone"].pop("pos_embed")
        np.testing.assert_array_equal(found, resize_positions(jnp.asarray(positions), 4, 6, "offset"))
        assert_equal(network, teacher)
    assert int(begun.state.step) == 0 and begun.carried == {}
    assert_equal(begun.state.opt_state, fresh.opt_state)
    report = begun.report
    resized = {f"{item}/backbone/pos_embed": [[17, 24], [37, 24]] for item in ("params", "targets")}
    assert report["resized"] == resized and report["missing"] == report["unexpected"] == report["fresh"] == []
    assert report["loaded"] == len(jax.tree.leaves(fresh.params)) + len(jax.tree.leaves(fresh.targets))
    assert report["step"] == STEPS and report["network"] == "the teacher"


def test_a_stage_may_add_a_gram_teacher_and_centres_and_the_next_may_drop_them(
    source, trained, phantom_dataset, one_device
):
    """The Gram teacher is the teacher as the stage starts, centres are fresh; neither is missed by who has none."""
    options = {"objective.centring": "softmax", "objective.gram_weight": 1.0}
    begun, _ = start(phantom_dataset, one_device, init_from=str(source[0]), **options, **STAGE_TWO)
    targets = begun.state.targets
    assert_equal(targets["gram"], targets["backbone"])
    assert not any(centre.any() for centre in targets["centres"].values())
    backbone, _ = start(phantom_dataset, one_device, init_from=str(source[0]), init_parts="backbone", **options)
    assert_equal(backbone.state.targets["gram"], backbone.state.targets["backbone"])
    anchored, _ = trained(init_from=str(source[0]), total_steps=1, **options)
    plain, _ = start(phantom_dataset, one_device, init_from=str(anchored))
    assert plain.state.targets.keys() == {"backbone", "dino_head", "ibot_head"}


def test_networks_do_not_share_buffers(source, phantom_dataset, one_device):
    """The state is donated to the step: one buffer in two places would be overwritten."""
    begun, _ = start(phantom_dataset, one_device, init_from=str(source[0]))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((begun.state.params, begun.state.targets))]
    assert len(set(pointers)) == len(pointers)


def test_both_as_they_were_at_an_earlier_step(source, phantom_dataset, one_device):
    run_dir, _ = source
    begun, _ = start(phantom_dataset, one_device, init_from=str(run_dir), init_network="both", init_step=2)
    assert_equal(begun.state.params, checkpoint.read_item(run_dir, "params", 2))
    assert_equal(begun.state.targets, checkpoint.read_item(run_dir, "targets", 2))
    assert differ(begun.state.params, begun.state.targets) and begun.report["step"] == 2


def test_the_backbone_alone_leaves_heads_fresh(source, phantom_dataset, one_device):
    run_dir, _ = source
    prototypes = {f"heads.{head}.num_prototypes": 24 for head in ("dino_head", "ibot_head")}
    begun, fresh = start(phantom_dataset, one_device, init_from=str(run_dir), init_parts="backbone", **prototypes)
    teacher = checkpoint.read_item(run_dir, "targets")["backbone"]
    for network, before in ((begun.state.params, fresh.params), (begun.state.targets, fresh.targets)):
        assert_equal(network["backbone"], teacher)
        for head in ("dino_head", "ibot_head"):
            assert_equal(network[head], before[head])
    assert begun.report["fresh"] == begun.report["unused"] == ["dino_head", "ibot_head"]


def test_a_branch_of_everything_is_the_run_itself(source, trained):
    """Six steps at once = four, then two more in another folder: metrics and networks to the bit."""
    run_dir, first = source
    whole, lines = trained(total_steps=6)
    changes = {"init_from": str(run_dir), "init_parts": "everything", "total_steps": 6}
    branch, rest = trained(**changes)
    assert [line["step"] for line in rest] == [4, 5]
    assert first + rest == lines
    for item in ("params", "targets", "opt_state"):
        assert_equal(checkpoint.read_item(branch, item), checkpoint.read_item(whole, item))
    assert (branch / "examples" / "first_batch.png").exists()
    report = json.loads((branch / "run.json").read_text())["init"]
    assert report["source"] == str(run_dir) and report["parts"] == "everything" and report["step"] == STEPS


def test_a_branch_goes_on_in_the_data_where_the_source_stood(source, phantom_dataset, tmp_path, one_device):
    """A source whose batches were once skipped: step t of the branch takes the batch that the source would have."""
    run_dir = tmp_path / "skipped"
    shutil.copytree(source[0], run_dir)
    file = run_dir / "checkpoints" / "4" / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data_skip": 3}))
    changes = {"init_from": str(run_dir), "init_parts": "everything", "total_steps": 6}
    begun, _ = start(phantom_dataset, one_device, **changes)
    assert begun.carried["data_skip"] == 3 and int(begun.state.step) == STEPS
    stage, _ = start(phantom_dataset, one_device, init_from=str(run_dir))
    assert stage.carried == {}


COOL = {"total_steps": 4, "optim.cooldown_frac": 0.5, "optim.warmup_frac": 0.5, "objective.ema": (0.9, 1.0)}


def test_a_killed_stage_goes_on_without_its_source_and_keeps_its_schedules(source, trained, tmp_path, monkeypatch):
    """Killed after a save of stage two; the source is deleted. Logged schedules are those of positions 4 .. 7 of 8."""
    run_dir = tmp_path / "source"
    shutil.copytree(source[0], run_dir)
    changes = {"init_from": str(run_dir), "schedules_from": "continue", **STAGE_TWO, **COOL}
    _, wanted = trained(**changes)
    workdir = tmp_path / "run"
    real = train.loop.check_finite

    def die(step, *rest):
        real(step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "check_finite", die)
        with pytest.raises(KeyboardInterrupt):
            trained(workdir, **changes)
    assert checkpoint.steps_of(workdir) == [2]
    shutil.rmtree(run_dir)
    _, lines = trained(workdir, **changes)
    assert lines == wanted
    peak = 3e-3 * (8 / 1024) ** 0.5
    # No warm-up again; the last two of eight positions cool down.
    rates = [peak, peak, peak, 1e-6 + (peak - 1e-6) / 2]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    ema = 1 - 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(4, 8) / 8))
    assert [line["ema"] for line in lines] == pytest.approx(ema)
    said = json.loads((workdir / "run.json").read_text())
    assert said["resumed_from_step"] == 2 and said["init"]["source"] == str(run_dir)
    assert said["init"]["resized"]["params/backbone/pos_embed"] == [[17, 24], [37, 24]]
    assert checkpoint.read_meta(workdir)["timeline"] == {"offset": 4, "opening_steps": 4, "total_steps": 4}


def test_restarted_schedules_begin_anew(source, phantom_dataset):
    experiment = build(tiny(phantom_dataset, init_from=str(source[0]), **COOL))
    rates = [float(experiment.schedules["learning_rate"](jnp.asarray(step))) for step in range(4)]
    peak = 3e-3 * (8 / 1024) ** 0.5
    assert rates == pytest.approx([0.0, peak, peak, 1e-6 + (peak - 1e-6) / 2])
    assert experiment.meta["timeline"]["offset"] == 0


def test_public_weights_become_both_backbones(phantom_dataset, tmp_path, one_device):
    """A Hugging Face folder, or the file in it; heads stay fresh, positions are resized by this run's rule."""
    model = tiny_model(depth=2, num_heads=2, image_size=24, layer_scale=1.0)
    backbone = random_backbone(model)
    _write(tmp_path, model, backbone, image_size=24)
    positions = backbone.pop("pos_embed")
    for name in (tmp_path, tmp_path / "model.safetensors"):
        begun, fresh = start(phantom_dataset, one_device, init_from=str(name), init_parts="backbone")
        for network, before in ((begun.state.params, fresh.params), (begun.state.targets, fresh.targets)):
            found = network["backbone"].pop("pos_embed")
            np.testing.assert_array_equal(found, resize_positions(jnp.asarray(positions), 3, 4, "offset"))
            assert_equal(network["backbone"], backbone)
            assert_equal(network["dino_head"], before["dino_head"])
        assert begun.report["step"] is None and begun.report["fresh"] == ["dino_head", "ibot_head"]


def test_a_frozen_backbone_waits_while_heads_learn(source, phantom_dataset, one_device):
    """Half of four steps: student and teacher backbones stay the source's teacher, heads and moments move."""
    changes = {"init_from": str(source[0]), "init_parts": "backbone", "optim.frozen_backbone_frac": 0.5}
    state = start(phantom_dataset, one_device, **changes)[0].state
    experiment = build(tiny(phantom_dataset, **changes))
    grads = jax.tree.map(jnp.ones_like, state.params)
    for step, frozen in ((1, True), (2, False)):
        updates, moments = experiment.tx.update(grads, state.opt_state, state.params, step=jnp.asarray(step))
        params = jax.tree.map(jnp.add, state.params, updates)
        assert differ(params["backbone"], state.params["backbone"]) is not frozen
        assert differ(params["ibot_head"], state.params["ibot_head"])
        assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(moments))
        teacher = experiment.objective.update_targets(state.targets, params, {}, jnp.asarray(step))
        # m t + (1 - m) s of equal t and s is t up to the last bit.
        same = [
            np.allclose(a, b, rtol=3e-7, atol=0)
            for a, b in zip(*map(jax.tree.leaves, (teacher["backbone"], params["backbone"])), strict=True)
        ]
        assert all(same) is frozen


def test_a_fine_tuning_goes_on_without_its_pretraining(source, tmp_path):
    """Its own checkpoint knows the architecture, and keeps where the backbone came from."""
    config, run_dir = linear.get_config(), tmp_path / "source"
    shutil.copytree(source[0], run_dir)
    config.update(init_from=str(run_dir))
    config.data.targets, config.head.blocks = ("Effusion",), 1
    first = build(config).meta
    shutil.rmtree(run_dir)
    assert build(config, first).meta == first
    assert first["pretrained"]["step"] == STEPS


def refused(dataset, mesh, **changes):
    with pytest.raises((ConfigError, door.DataError)) as error:
        start(dataset, mesh, **changes)
    (line,) = str(error.value).splitlines()
    return line


def test_refusals_name_key_and_arrays(source, phantom_dataset, tmp_path, one_device):
    run_dir = str(source[0])
    weights = tmp_path / "weights"
    weights.mkdir()
    _write(weights, tiny_model(depth=2), random_backbone(tiny_model(depth=2)))
    (tmp_path / "empty").mkdir()
    cases = [
        ({"init_from": str(tmp_path / "empty")}, "holds no checkpoints"),
        ({"init_from": run_dir, "init_step": 3}, "has no checkpoint of step 3; it has 2, 4"),
        ({"init_from": run_dir, "init_step": -2}, "config.init_step=-2: legal are -1"),
        ({"init_from": run_dir, "model.depth": 3}, "another architecture"),
        ({"init_from": run_dir, "model.num_registers": 2}, "params/backbone/register_tokens is (4, 24)"),
        ({"init_from": run_dir, "heads.ibot_head.hidden": 12}, "ibot_head/bottleneck/kernel"),
        ({"init_from": run_dir, "init_parts": "everything"}, "config.total_steps=4"),
        ({"init_from": run_dir, "init_parts": "everything", "total_steps": 9, "batch_size": 4}, "config.batch_size=4"),
        ({"init_from": run_dir, "init_parts": "everything", "total_steps": 9, **STAGE_TWO}, "pos_embed is (17, 24)"),
        ({"init_from": str(weights)}, "config.init_parts='networks': "),
        ({"init_from": str(weights), "init_parts": "backbone", "init_step": 5}, "config.init_step=5"),
        ({"init_from": str(weights), "init_parts": "backbone", "init_network": "both"}, "config.init_network='both'"),
        ({"init_from": str(weights), "init_parts": "backbone", "schedules_from": "continue"}, "legal is restart"),
        ({"init_from": str(weights), "init_parts": "backbone", "model.depth": 1}, "another architecture"),
        ({"init_from": str(weights / "other.safetensors"), "init_parts": "backbone"}, "no such file"),
    ]
    for changes, words in cases:
        assert words in refused(phantom_dataset, one_device, **changes), changes
    (weights / "model.safetensors").write_bytes(b"x")
    line = refused(phantom_dataset, one_device, init_from=str(weights), init_parts="backbone")
    assert "model.safetensors: not a readable" in line


def test_a_run_without_teacher_gives_its_only_network(source, phantom_dataset, tmp_path, one_device):
    run_dir = tmp_path / "only"
    shutil.copytree(source[0], run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "4" / "targets")
    file = run_dir / "checkpoints" / "4" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"items": ["params", "opt_state"]}))
    begun, _ = start(phantom_dataset, one_device, init_from=str(run_dir))
    student = checkpoint.read_item(run_dir, "params")
    assert_equal(begun.state.params, student)
    assert_equal(begun.state.targets, student)
    assert begun.report["network"] == "the student, its only network"
    assert "keeps no teacher" in refused(phantom_dataset, one_device, init_from=str(run_dir), init_network="both")


def test_the_report_reads_as_two_lines(source, phantom_dataset, one_device):
    begun, _ = start(phantom_dataset, one_device, init_from=str(source[0]), **STAGE_TWO)
    first, second = begun.describe().splitlines()
    assert begun.report["model"] == {"image_size": [32, 48]}
    assert first == f"from {source[0]}, step 4: networks of the teacher"
    assert "params/backbone/pos_embed [17, 24] -> [37, 24]" in second
    assert "missing: none; unexpected: none" in second
    assert init_from.is_public(source[0]) is False
