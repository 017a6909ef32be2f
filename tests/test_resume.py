"""What may change within a run, where its data goes on, and going back after numbers that are not finite."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import smoke
from cxr_jax.config import ConfigError
from cxr_jax.loop import NumericError
from cxr_jax.resume import carried, check_same_config, check_same_data, data_skip_after, roll_back


def saved_and_now(allow=(), **changes):
    saved = smoke.get_config()
    now = ConfigDict(saved.copy_and_resolve_references())
    now.allow_change = allow
    now.update_from_flattened_dict(changes)
    return saved.to_dict(), now


def plain(pair):
    return pair[0], pair[1].to_dict()


@pytest.mark.parametrize(
    ("allow", "changes", "named"),
    [
        (("total_steps",), {"total_steps": 200}, ["total_steps"]),
        (("optim",), {"optim.clip_norm": 1.0, "optim.base_learning_rate": 0.1}, None),
        (("optim.clip_norm",), {"optim.clip_norm": 1.0, "log.every_steps": 3, "mesh.fsdp": 4}, ["optim.clip_norm"]),
        (("batch_size",), {}, []),
    ],
)
def test_what_is_named_may_change(allow, changes, named, tmp_path):
    found = check_same_config(*plain(saved_and_now(allow, **changes)), tmp_path)
    assert set(found) == set(changes if named is None else named)


@pytest.mark.parametrize(
    ("allow", "changes", "words"),
    [
        ((), {"batch_size": 64}, ("config.batch_size was", "and is 64", "--config.allow_change=\"('batch_size',)\"")),
        (("optim",), {"seed": 1, "optim.clip_norm": 1.0}, ("config.seed was 0 and is 1",)),
        (("optim.clip",), {"optim.clip_norm": 1.0}, ("config.optim.clip_norm",)),
        (("model",), {"model.width": 32}, ("model cannot change within a run",)),
        (("heads.dino_head",), {}, ("heads.dino_head cannot change",)),
        (("total_steps", "nonsense"), {}, ("nonsense is no key or section of the config",)),
        (("dtypes",), {"dtypes.param": "bfloat16"}, ("config.dtypes.param was 'float32'",)),
    ],
)
def test_all_else_is_refused_with_the_difference(allow, changes, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        check_same_config(*plain(saved_and_now(allow, **changes)), tmp_path)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_what_no_permission_changes_is_not_offered(tmp_path):
    for changes in ({"seed": 1}, {"seed": 1, "batch_size": 64}, {"dtypes.param": "bfloat16"}):
        with pytest.raises(ConfigError) as error:
            check_same_config(*plain(saved_and_now((), **changes)), tmp_path)
        assert "allow_change" not in str(error.value)


def test_a_key_that_a_run_of_an_earlier_version_lacks_may_be_allowed(tmp_path):
    saved, now = plain(saved_and_now())
    del saved["objective"]["teacher_dtype"], saved["model"]["num_registers"]
    words = "config.model.num_registers is new and is .*; config.objective.teacher_dtype is new and is 'param'; "
    with pytest.raises(
        ConfigError, match=words + ".*allow_change=\"\\('model.num_registers','objective.teacher_dtype',"
    ):
        check_same_config(saved, now, tmp_path)
    now["allow_change"] = ("model.num_registers", "objective.teacher_dtype")
    assert set(check_same_config(saved, now, tmp_path)) == set(now["allow_change"])
    now["allow_change"] = ("model",)
    with pytest.raises(ConfigError, match="model cannot change within a run"):
        check_same_config(saved, now, tmp_path)


def test_a_key_that_only_a_run_of_an_earlier_version_has_may_be_allowed(tmp_path):
    saved, now = plain(saved_and_now())
    saved["crops"]["sharpness"] = 0.5
    with pytest.raises(ConfigError, match=r"allow_change=\"\('crops\.sharpness',"):
        check_same_config(saved, now, tmp_path)
    now["allow_change"] = ("crops.sharpness",)
    assert set(check_same_config(saved, now, tmp_path)) == {"crops.sharpness"}
    now["allow_change"] = (5,)
    with pytest.raises(ConfigError, match="5 is no key or section"):
        check_same_config(*plain(saved_and_now((5,))), tmp_path)


def test_another_dataset_needs_permission():
    config = saved_and_now()[1].to_dict()
    check_same_data({"fingerprint": "a" * 64}, "a" * 64, config, Path("run"))
    with pytest.raises(ConfigError, match=r"fingerprint aaaaaaaaaaaa, found bbbbbbbbbbbb"):
        check_same_data({"fingerprint": "a" * 64}, "b" * 64, config, Path("run"))
    config["allow_change"] = ("data",)
    check_same_data({"fingerprint": "a" * 64}, "b" * 64, config, Path("run"))


@pytest.mark.parametrize("old", [8, 12, 30])
@pytest.mark.parametrize("new", [1, 8, 12, 64])
def test_another_batch_size_goes_on_at_the_next_record(old, new):
    for step, skip in ((0, 0), (7, 0), (1000, 13)):
        after = data_skip_after(step, skip, old, new)
        seen, first = (step + skip) * old, (step + after) * new
        assert 0 <= first - seen < new


def test_a_checkpoint_is_carried():
    saved, config = plain(saved_and_now())
    meta = {"config": saved, "step": 10, "data_skip": 2, "owed": {"p": None}, "model": {}}
    assert carried(meta, config) == {"data_skip": 2, "owed": {"p": None}}
    config["batch_size"] = saved["batch_size"] // 2
    assert carried(meta, config)["data_skip"] == 2 * 12 - 10


def seen_batches(meta, first, last):
    return set(range(first + meta["data_skip"], last + 1 + meta["data_skip"]))


def test_rolling_back_never_reads_a_batch_again():
    """Fails at 27 with checkpoints at 10 and 20; again at 24 without a newer one; then a third time after a save."""
    meta = {"data_skip": 0}
    before = seen_batches(meta, 0, 27)
    good, change = roll_back(NumericError(27, "x"), [10, 20], meta, 3)
    meta |= change
    assert good == 20 and meta["rollbacks"] == [{"failed_step": 27, "to_step": 20, "data_skip": 8}]
    assert min(seen_batches(meta, 20, 24)) == 28 == max(before) + 1
    before |= seen_batches(meta, 20, 24)
    good, change = roll_back(NumericError(24, "x"), [10, 20], meta, 3)
    meta |= change
    assert good == 10, "20 may hold what went wrong"
    assert min(seen_batches(meta, 10, 11)) == max(before) + 1
    good, change = roll_back(NumericError(18, "x"), [10, 15], meta, 3)
    meta |= change
    assert good == 15 and len(meta["rollbacks"]) == 3
    with pytest.raises(NumericError, match=r"step 19: x, after 3 rollbacks \(numerics.max_rollbacks=3\)"):
        roll_back(NumericError(19, "x"), [10, 15, 17], meta, 3)


def test_nothing_to_go_back_to_ends_the_run():
    error = NumericError(3, "loss not finite")
    with pytest.raises(NumericError) as raised:
        roll_back(error, [], {"data_skip": 0}, 3)
    assert raised.value is error
