"""Runs whose files are damaged, of the wrong shape or without numbers: compared as far as they go, and told of."""

import json

import pytest

from launch.collect import split_folders
from launch.collecting.differences import differences
from launch.collecting.figure import Looks, draw
from launch.collecting.runs import find, read_run

STEPS = 20


def write(folder, about=None, lines=None, results=None):
    folder.mkdir(parents=True)
    if about is not None:
        (folder / "run.json").write_text(json.dumps(about))
    if lines is not None:
        (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def lines_of(value=lambda step: float(step)):
    return [json.dumps({"step": step, "loss": value(step)}).encode() for step in range(STEPS)]


@pytest.mark.parametrize(
    "about",
    [
        {"config": [1], "overrides": [2], "command": 3, "environment": 4},
        {"config": None, "overrides": "seed"},
        {"config": {"total_steps": [1]}, "overrides": {}},
        [1],
        3,
    ],
)
def test_a_run_json_of_any_shape_is_told_and_compared(about, tmp_path):
    run = read_run(write(tmp_path / "a", about, lines_of()), "a")
    assert run.step == STEPS and len(run.curves["loss"].values) == STEPS
    assert differences(run, run) == [("config", []), ("environment", []), ("run", [])]
    if isinstance(about, dict) and isinstance(about["config"], dict):
        assert run.problems == []
    else:
        assert any("holds no object" in problem for problem in run.problems)


def test_wrong_parts_of_run_json_are_named(tmp_path):
    run = read_run(write(tmp_path / "a", {"config": [1], "overrides": {"seed": 3}}), "a")
    assert run.problems == ["run.json: 'config' holds no object but [1]; it is left out"]
    assert run.overrides == {"seed": 3}


def test_the_good_lines_of_a_damaged_file_are_kept_and_the_others_counted(tmp_path):
    lines = lines_of()
    lines[7], lines[9] = b"\xff\x00noise", b'{"step": "nine", "loss": 1.0}'
    run = read_run(write(tmp_path / "a", lines=lines), "a")
    assert list(run.curves["loss"].steps) == [step for step in range(STEPS) if step not in (7, 9)]
    (problem,) = run.problems
    assert "2 of its 20 lines cannot be read, the first is line 8; the others are used" in problem
    assert run.state == "stopped at 20"


def test_a_torn_last_line_is_no_damage(tmp_path):
    folder = write(tmp_path / "a", lines=lines_of())
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    run = read_run(folder, "a")
    assert run.problems == [] and run.step == STEPS


@pytest.mark.parametrize("content", [b"\x93\xff\x00\x10" * 50, b"\x93\n\xff\n", b"[1]\n"])
def test_bytes_that_are_no_metrics_are_called_damaged(content, tmp_path):
    folder = write(tmp_path / "a")
    (folder / "metrics.jsonl").write_bytes(content)
    run = read_run(folder, "a")
    assert run.state == "damaged" and "metrics.jsonl is damaged" in run.problems[0]


def test_a_loss_that_was_never_finite_is_told_with_the_step_it_reached(tmp_path):
    run = read_run(write(tmp_path / "a", lines=lines_of(lambda step: None)), "a")
    assert run.state == "stopped at 20" and run.curves == {}
    assert run.problems == ["not finite: loss (in 20 of 20 lines, first at step 0)"]
    late = read_run(write(tmp_path / "b", lines=lines_of(lambda step: None if step >= 15 else 1.0)), "b")
    assert late.problems == ["not finite: loss (in 5 of 20 lines, first at step 15)"]
    huge = read_run(write(tmp_path / "c", lines=lines_of(lambda step: 10**400)), "c")
    assert "not finite: loss (in 20" in huge.problems[0]


@pytest.mark.parametrize(
    "results",
    [
        {"auroc_macro": 0.5, "auroc_macro_interval": 3, "evaluated": [1]},
        {"auroc_macro": "high"},
        {"auroc_macro": 0.5, "auroc_macro_interval": [1]},
    ],
)
def test_results_of_any_shape_are_told(results, tmp_path):
    write(tmp_path / "a", lines=lines_of())
    write(tmp_path / "a" / "view", results=results)
    ((run,), notes) = find([tmp_path])
    assert "view: auroc_macro of results.json is no number with an interval of two" in run.problems and not notes
    assert all(score.low is None for score in run.scores.values())


def test_a_run_that_says_nothing_stands_behind_the_others_and_spoils_no_order(tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.01), ("c", None), ("d", 0.001)):
        about = {"config": {"rate": rate}, "overrides": {"rate": rate}} if rate else None
        write(tmp_path / name, about, lines_of())
    runs, _ = find([tmp_path])
    looks = Looks(runs)
    assert looks.values == [[0.001, 0.01, 0.1, "unknown"]]
    assert [line.get_label() for line in looks.legend()] == ["rate 0.001", "rate 0.01", "rate 0.1", "rate unknown"]
    alone = Looks([run for run in runs if run.name != "c"])
    for run in runs:
        if run.name != "c":
            assert looks.style(run) == alone.style(run)


def test_a_run_without_the_metric_takes_no_place_in_the_legend(tmp_path):
    for name, lines in (("a", lines_of()), ("b", lines_of(lambda step: None)), ("c", lines_of())):
        write(tmp_path / name, lines=lines)
    runs, _ = find([tmp_path])
    (legend,) = draw(runs, ["loss"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "c"]


def test_folders_with_commas_are_one_where_they_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rate=1,ratio=2", "rate=1", "plain"):
        (tmp_path / name).mkdir()
    names = [str(path) for path in split_folders("plain,rate=1,ratio=2,rate=1,nothing")]
    assert names == ["plain", "rate=1,ratio=2", "rate=1", "nothing"]
