"""What a later stage would refuse is refused first; results take their places so that what looks whole is whole."""

import pytest

from configs.eval import linear_cached
from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.evals.early import check_later_stages
from cxr_jax.evals.publishing import FILES, together
from cxr_jax.evals.task import open_role


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("subgroups.fields", ("race",), "config.subgroups.fields has 'race'; legal are source"),
        ("subgroups.age_bins", (40.0, 20.0), "config.subgroups.age_bins=.* must rise"),
        ("subgroups.min_positive_patients", 0, "config.subgroups.min_positive_patients=0"),
        ("audits.warn_auroc", 0.2, "config.audits.warn_auroc=0.2"),
        ("audits.duplicate_correlation", 2.0, "config.audits.duplicate_correlation=2.0"),
        ("audits.neighbours", 0, "config.audits.neighbours=0"),
        ("attention_images", -1, "config.attention_images=-1"),
        ("features.cache", "/proc/nowhere", "config.features.cache=/proc/nowhere: cannot be written"),
    ],
)
def test_later_stages_are_judged_first(key, value, words):
    config = linear_cached.get_config()
    check_later_stages(config.to_dict())
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=words):
        check_later_stages(config.to_dict())


def test_a_misspelt_split_or_target_is_told_with_its_key(phantom_dataset):
    with pytest.raises(DataError, match=r"config.data.split: .*has no split 'tset'"):
        open_role("test", str(phantom_dataset), "tset")
    with pytest.raises(DataError, match=r"config.data.targets: target 'efusion' .*did you mean 'Effusion'\?"):
        open_role("train", str(phantom_dataset), "train", targets=("efusion",))


@pytest.mark.parametrize("kill_at", [0, 1, 2, 3])
def test_results_of_one_evaluation_never_stand_beside_a_report_of_another(kill_at, tmp_path, monkeypatch):
    def evaluation(text):
        with together(tmp_path) as parts:
            for part in parts:
                part.write_text(text)

    evaluation("old")
    count, replace = 0, type(tmp_path).replace

    def killed(self, target):
        nonlocal count
        if count == kill_at:
            raise KeyboardInterrupt
        count += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", killed)
        if kill_at < len(FILES):
            with pytest.raises(KeyboardInterrupt):
                evaluation("new")
        else:
            evaluation("new")
    assert (tmp_path / "results.json").exists() == (kill_at == len(FILES))
    if kill_at == len(FILES):
        assert {(tmp_path / name).read_text() for name in FILES} == {"new"}


def test_a_failure_while_writing_leaves_the_old_files(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("old")
    with pytest.raises(FileNotFoundError, match=r"results.json.part was not written"), together(tmp_path) as parts:
        for part in parts[:2]:
            part.write_text("new")
    assert {file.read_text() for file in tmp_path.iterdir()} == {"old"} and len(list(tmp_path.iterdir())) == 3
