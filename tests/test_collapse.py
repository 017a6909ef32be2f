"""The collapse rule on made-up histories: what it flags, when, what it leaves alone, and what survives a restart."""

import json
import math

import pytest

from cxr_jax.collapse import CollapseWatch, signs
from cxr_jax.evals.training_curves import collapse_sentences, training_panels

K, IMAGES, AFTER, PATIENCE, EVERY = 256, 32, 100, 3, 10
LN = math.log(K)
PROTOTYPES = {"dino": K, "ibot": K}

# Log lines as a healthy run of configs/pretrain/small_cxr.py had them at step 300, and changes that make each collapse.
HEALTHY = {
    "dino_local_loss": 4.38, "dino_global_loss": 1.10, "teacher_entropy": 5.28, "prototype_use": 0.7,
    "ibot_loss": 2.24, "ibot_teacher_entropy": 4.2, "ibot_prototype_use": 0.6,
    "feature_spread": 0.97, "teacher_cls_rank": 40.0, "skipped_updates": 0,
}  # fmt: skip
UNIFORM = {"dino_local_loss": 0.9 * LN, "dino_global_loss": 0.1 * LN, "teacher_entropy": 0.999 * LN}
UNIFORM_PATCHES = {"ibot_loss": 0.5 * LN, "ibot_teacher_entropy": 0.995 * LN}
ONE = {"dino_local_loss": 0.03, "dino_global_loss": 0.004, "teacher_entropy": 0.01, "prototype_use": 1 / 64}
ALIKE = {"feature_spread": 0.001, "teacher_cls_rank": 1.05}
KINDS = {
    "uniform teacher (dino)": UNIFORM,
    "uniform teacher (ibot)": UNIFORM_PATCHES,
    "few prototypes (dino)": ONE,
    "images alike": ALIKE,
}
# The same kinds as other runs showed them.
ALSO = {
    # A softmax teacher at temperature 5, whose student is sharp.
    "uniform teacher (dino)": {"dino_local_loss": 5.5, "dino_global_loss": 0.6, "teacher_entropy": LN},
    "few prototypes (dino)": {
        "dino_local_loss": 0.6,
        "dino_global_loss": 0.1,
        "teacher_entropy": 0.6,
        "prototype_use": 2 / 64,
    },
    "images alike": {"mean_patch_spread": 0.001, "mean_patch_rank": 1.1},
}


def make_watch(mode="warn", saved=None, prototypes=PROTOTYPES):
    return CollapseWatch(
        mode=mode, after_step=AFTER, patience=PATIENCE, num_prototypes=prototypes, images=IMAGES, saved=saved
    )


def feed(watch, rows, start=0):
    """The events of rows logged every ten steps, and the step after the last."""
    events = []
    for i, row in enumerate(rows):
        events += watch.look(start + i * EVERY, row)
    return events, start + len(rows) * EVERY


def test_a_healthy_run_is_not_flagged():
    """Nor one that begins as it must: uniform, all images alike, and free of both before it is judged."""
    rows = [HEALTHY | UNIFORM | UNIFORM_PATCHES | ALIKE] * (AFTER // EVERY) + [HEALTHY] * 20
    events, _ = feed(make_watch(), rows)
    assert events == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_flagged_once_after_patience_and_said_to_be_over(kind):
    watch = make_watch()
    early, step = feed(watch, [HEALTHY | KINDS[kind]] * (AFTER // EVERY))
    assert early == [] and step == AFTER
    waiting, step = feed(watch, [HEALTHY | KINDS[kind]] * (PATIENCE - 1), step)
    assert waiting == [] and watch.holds == []
    events, step = feed(watch, [HEALTHY | KINDS[kind]] * 10, step)
    assert len(events) == 1 and events[0].startswith(f"step {AFTER + (PATIENCE - 1) * EVERY}: {kind}: ")
    assert watch.holds == [kind]
    events, step = feed(watch, [HEALTHY] * 10, step)
    assert events == [f"step {step - 8 * EVERY}: no longer {kind}"] and watch.holds == []


@pytest.mark.parametrize("kind", ALSO)
def test_other_forms_of_a_kind_are_flagged_too(kind):
    events, _ = feed(make_watch(), [HEALTHY | ALSO[kind]] * PATIENCE, AFTER)
    assert len(events) == 1 and f": {kind}: " in events[0]


def test_what_does_not_persist_is_not_flagged():
    watch = make_watch()
    events, _ = feed(watch, [HEALTHY | ONE, HEALTHY | ONE, HEALTHY] * 10, AFTER)
    assert events == []


def test_the_words_name_the_numbers():
    events, _ = feed(make_watch(), [HEALTHY | UNIFORM] * PATIENCE, AFTER)
    assert "every prototype alike" in events[0] and "ln 256 = 5.55" in events[0] and "temperature" in events[0]


NOT_COLLAPSED = {
    # Cross-entropy on the line, as DINO's was for hundreds of steps of runs that learned; the teacher was sharper.
    "loss_at_ln_k": {"dino_local_loss": 0.9 * LN, "dino_global_loss": 0.1 * LN, "teacher_entropy": 0.97 * LN},
    # A student that predicts sharp targets well, with all prototypes in use.
    "good_prediction": {"dino_local_loss": 0.1, "dino_global_loss": 0.1, "teacher_entropy": 0.1, "prototype_use": 0.9},
    # Few prototypes, some images without one: the worst of a run with 1,024 prototypes that recovered.
    "some_prototypes": {
        "dino_local_loss": 1.2,
        "dino_global_loss": 0.1,
        "teacher_entropy": 0.47,
        "prototype_use": 0.047,
    },
    "narrow": {"feature_spread": 0.1, "teacher_cls_rank": 3.0},
}


@pytest.mark.parametrize("name", NOT_COLLAPSED)
def test_near_misses_are_not_flagged(name):
    events, _ = feed(make_watch(), [HEALTHY | NOT_COLLAPSED[name]] * 10, AFTER)
    assert events == []


def test_only_what_is_logged_is_judged():
    """MAE logs a loss and ranks of its own, supervised heads a loss: no kind but skipped updates applies."""
    watch = make_watch(prototypes={})
    events, _ = feed(watch, [{"loss": 1.0, "cls_rank": 1.0, "skipped_updates": 0}] * 30)
    assert events == [] and watch.state()["against"].keys() == {"not finite"}
    assert signs(HEALTHY | {"teacher_entropy": math.nan}, PROTOTYPES, IMAGES).keys() == {
        "uniform teacher (ibot)", "few prototypes (ibot)", "images alike",
    }  # fmt: skip
    assert signs({"feature_spread": 0.0}, {}, IMAGES)["images alike"].shows


def test_skipped_updates_are_told_at_once_and_stop_nothing():
    watch = make_watch("stop")
    events, _ = feed(watch, [HEALTHY, HEALTHY | {"skipped_updates": 2}, HEALTHY | {"skipped_updates": 2}])
    assert len(events) == 2
    assert events[0].startswith("step 10: not finite: updates skipped since the last log step: 2 (2 in all)")
    assert events[1] == "step 20: no longer not finite"
    watch.look(30, HEALTHY | {"skipped_updates": 5})
    assert watch.holds == ["not finite"] and watch.check(30) is None


def test_stopping_is_by_choice():
    for mode in ("warn", "stop"):
        watch = make_watch(mode)
        feed(watch, [HEALTHY | ONE] * PATIENCE, AFTER)
        reason = watch.check(200)
        if mode == "warn":
            assert reason is None
        else:
            assert reason.startswith("step 200: few prototypes (dino): every image gets the same few prototypes")
            assert "\n" not in reason
    with pytest.raises(ValueError, match="'halt': legal are warn, stop"):
        make_watch("halt")


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_restored_watch_goes_on_as_the_one_that_was_killed(cut):
    rows = [HEALTHY] * 2 + [HEALTHY | ALIKE] * 5 + [HEALTHY | {"skipped_updates": 1}] * 5
    whole, _ = feed(make_watch(), rows, AFTER)
    first = make_watch()
    before, step = feed(first, rows[:cut], AFTER)
    after, _ = feed(make_watch(saved=json.loads(json.dumps(first.state()))), rows[cut:], step)
    assert before + after == whole and len(whole) == 4


def test_a_report_tells_what_the_run_warned_of(tmp_path):
    path = tmp_path / "metrics.jsonl"
    collapse = {20: ["images alike"], 30: ["images alike", "few prototypes (dino)"], 40: ["few prototypes (dino)"]}
    rows = [{"step": s, "loss": 1.0} | ({"collapse": collapse[s]} if s in collapse else {}) for s in range(0, 50, 10)]
    rows.insert(2, {"step": 15, "probe_auroc_x": 0.6, "probe_auroc_x_low": 0.5, "probe_auroc_x_high": 0.7})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert collapse_sentences(path) == [
        "The run warned: images alike, from step 20 to step 30.",
        "The run warned: few prototypes (dino), from step 30 to the end of the run.",
    ]
    panels = dict(training_panels(path))
    assert panels.keys() == {"Loss terms", "Online probe, AUROC of nearest neighbours"}
