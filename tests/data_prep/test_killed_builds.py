"""A build killed in any phase and started again by the same command gives the bytes of an undisturbed one."""

import json
import multiprocessing
import os
import re
import signal

import pytest
from tiny_folder import folder_bytes, one_error_line, write_folder

from cxr_jax.data.records import DataError
from data_prep import build, phases
from data_prep.building_folder import BuildingFolder

CHUNKS = 5
FLAGS = ("--reader=folder", "--workers=0")
# where: (module, name, the call at which the process dies)
KILLS = {
    "in the second chunk": ("data_prep.chunks", "RecordWriter.write", 6),
    "between columns and records of a chunk": ("data_prep.chunks", "write_bytes", 4),
    "before curation": ("data_prep.build", "curate", 1),
    "in the second shard": ("data_prep.shards", "RecordWriter.write", 7),
    "between a shard and its note": ("data_prep.shards", "write_bytes", 2),
    "before the metadata": ("data_prep.build", "write_metadata", 1),
    "before the manifest": ("data_prep.dataset_writer", "write_bytes", 1),
    "before the renaming": ("data_prep.build", "BuildingFolder.show", 1),
}


def die_at(where: tuple[str, str, int], flags: list[str]) -> None:
    """Runs the build in this process until that call of that name of that module, then SIGKILL."""
    import importlib

    module, name, last = where
    owner = importlib.import_module(module)
    *parents, name = name.split(".")
    if parents == ["RecordWriter"] and module == "data_prep.shards":
        # A class of its own, so that only the shards' records are counted.
        owner.RecordWriter = type("ShardWriter", (owner.RecordWriter,), {})
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, counted)
    args = build.parse_flags(flags)
    args.shard_mb = 5000 / 2**20
    build.build(args)


def finish(flags) -> None:
    args = build.parse_flags(flags)
    args.shard_mb = 5000 / 2**20
    build.build(args)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write_folder(folder / "in", 20)
    finish([*FLAGS, f"--input={folder}/in", f"--output={folder}/out"])
    return folder


@pytest.fixture(scope="module")
def server():
    """Processes that have imported everything already, so that each kill costs no start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.build", "data_prep.readers.folder"])
    return context


@pytest.mark.parametrize("where", KILLS)
def test_killed_and_continued_is_undisturbed(undisturbed, server, tmp_path, capsys, where):
    flags = [*FLAGS, f"--input={undisturbed}/in", f"--output={tmp_path}/out"]
    process = server.Process(target=die_at, args=(KILLS[where], flags))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = len(list((tmp_path / ".out.building/parts").glob("*.npz")))
    finish(flags)
    assert folder_bytes(tmp_path / "out") == folder_bytes(undisturbed / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    said = re.search(r"continuing: (\d+) of (\d+) chunks", capsys.readouterr().out)
    expected = {"in the second chunk": 1, "between columns and records of a chunk": 1}.get(where, CHUNKS)
    assert left == expected and said and tuple(map(int, said.groups())) == (expected, CHUNKS)


def stopped(undisturbed, tmp_path, monkeypatch, where=(phases, "write_shard")):
    """A build that fails where told; returns its flags."""
    flags = [*FLAGS, f"--input={undisturbed}/in", f"--output={tmp_path}/out"]

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", "shard")

    with monkeypatch.context() as patch:
        patch.setattr(*where, fail)
        assert build.main(flags) == 1
    return flags


def test_a_full_disk_is_one_line_and_the_same_command_continues(undisturbed, tmp_path, monkeypatch, capsys):
    flags = stopped(undisturbed, tmp_path, monkeypatch)
    error = one_error_line(capsys.readouterr().err)
    assert error == ("error: shard: No space left on device; what is finished is kept, the same command continues")
    finish(flags)
    assert folder_bytes(tmp_path / "out") == folder_bytes(undisturbed / "out")


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "another's"])
def test_a_damaged_part_is_made_again(undisturbed, tmp_path, monkeypatch, capsys, damage):
    flags = stopped(undisturbed, tmp_path, monkeypatch)
    part = tmp_path / ".out.building/parts/00002.array_record"
    content = bytearray(part.read_bytes())
    if damage == "gone":
        part.unlink()
    elif damage == "another's":
        part.write_bytes(part.with_name("00003.array_record").read_bytes())
    elif damage == "cut":
        part.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    finish(flags)
    assert re.search("made again|again, whose records are gone", capsys.readouterr().out)
    assert folder_bytes(tmp_path / "out") == folder_bytes(undisturbed / "out")


def test_damaged_columns_thumbnails_and_shards_are_made_again(undisturbed, server, tmp_path, capsys):
    flags = [*FLAGS, f"--input={undisturbed}/in", f"--output={tmp_path}/out"]
    process = server.Process(target=die_at, args=(KILLS["before the metadata"], flags))
    process.start()
    process.join(60)
    shard = next((tmp_path / ".out.building/dataset").glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    (tmp_path / ".out.building/parts/00001.npz").write_bytes(b"PK")
    (tmp_path / ".out.building/parts/00003.thumbs.npy").write_bytes(b"")
    finish(flags)
    out = capsys.readouterr().out
    assert "continuing: 3 of 5 chunks" in out and re.search(r"continuing: (\d+) of \d+ shards", out)
    assert folder_bytes(tmp_path / "out") == folder_bytes(undisturbed / "out")


def test_curation_flags_may_change_on_the_way(undisturbed, tmp_path, monkeypatch, capsys):
    flags = stopped(undisturbed, tmp_path, monkeypatch)
    finish([*flags, "--dedup=exact"])
    assert "continuing: 5 of 5 chunks" in capsys.readouterr().out
    finish([*FLAGS, f"--input={undisturbed}/in", f"--output={tmp_path}/at_once", "--dedup=exact"])
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "at_once")


def test_finished_shards_of_other_curation_are_not_taken_for_ours(tmp_path, monkeypatch):
    """One shard a split and as many records in it: both plans have the same names and lengths."""
    folder = write_folder(tmp_path / "in", 20, view=["PA", "LL"] * 10)
    flags = [*FLAGS, f"--input={folder}", f"--output={tmp_path}/out"]
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_metadata", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
        assert build.main([*flags, "--views=LATERAL"]) == 1
    shards = {file.name for file in (tmp_path / ".out.building/dataset").iterdir()}
    assert build.main([*flags, "--views=PA"]) == 0
    assert shards <= set(folder_bytes(tmp_path / "out"))
    assert build.main([*FLAGS, f"--input={folder}", f"--output={tmp_path}/at_once", "--views=PA"]) == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "at_once")


def test_the_work_of_another_command_is_refused_and_named(undisturbed, tmp_path, monkeypatch):
    flags = stopped(undisturbed, tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"another build \(its canvas is 512, now 32\); .* or give --restart"):
        finish([*flags, "--canvas=32"])
    finish([*flags, "--canvas=32", "--restart"])
    assert json.loads((tmp_path / "out/manifest.json").read_text())["settings"]["canvas"] == 32


def test_a_repaired_image_is_read_again(tmp_path, capsys):
    folder = write_folder(tmp_path / "in", 12)
    image = folder / "images/0003.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:-200])
    flags = [*FLAGS, f"--input={folder}", f"--output={tmp_path}/out"]
    assert build.main(flags) == 3
    image.write_bytes(whole)
    finish(flags)
    finish([*FLAGS, f"--input={folder}", f"--output={tmp_path}/at_once"])
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "at_once")


def test_an_input_that_changed_under_a_finished_shard_is_told(undisturbed, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "in", 12)
    flags = [*FLAGS, f"--input={folder}", f"--output={tmp_path}/out"]
    with monkeypatch.context() as patch:
        patch.setattr(phases, "write_shard", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full")))
        assert build.main(flags) == 1
    for part in (tmp_path / ".out.building/parts").glob("*.array_record"):
        part.unlink()
    for index, file in enumerate(sorted((folder / "images").iterdir())):
        file.write_bytes((undisturbed / f"in/images/{index + 1:04d}.jpg").read_bytes())
    with pytest.raises(DataError, match="not what they were when this build began; give --restart"):
        finish(flags)


def test_two_builds_to_one_output_do_not_meet(undisturbed, tmp_path):
    with (
        BuildingFolder(tmp_path / "out", overwrite=False),
        pytest.raises(DataError, match="another build is writing it"),
    ):
        finish([*FLAGS, f"--input={undisturbed}/in", f"--output={tmp_path}/out"])
