"""Where a conversion is built: beside its output, and renamed, so that the output is whole or not there.

In: the output's path. Out: a new folder for the builder, moved into place when it is done. Everything that can be known
of the output is said before anything is read: a path that cannot be written fails in the first second.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from cxr_jax.config import ConfigError

_SHOWN_BYTES = 120  # of the output's name in that of the folder beside it: a name may have 255 in all


def check_output(output: Path, overwrite: bool, report: str) -> None:
    """Raise ConfigError where `output` is there and may not be replaced; `report` is the file of a conversion."""
    try:
        os.lstat(output)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be written ({error.strerror}); name another folder") from None
    if not overwrite:
        raise ConfigError(f"--output={output} exists; choose another folder or pass --overwrite")
    if output.is_symlink():
        raise ConfigError(f"--output={output} is a link, which is not replaced; name the folder itself: {_end(output)}")
    if not (output / report).is_file():
        raise ConfigError(f"--output={output} is not an earlier conversion (no {report}), so it is not replaced")


def _end(link: Path) -> str:
    try:
        return str(link.resolve())
    except (OSError, RuntimeError):
        return os.readlink(link)


def whole_or_nothing(output: Path, build: Callable[[Path], dict]) -> dict:
    """Run `build` on a new folder beside `output` and rename it into place; on any error nothing is left.

    What a killed conversion of the same name left on this machine is removed. Raises ConfigError, before `build`, where
    nothing can be written.
    """
    made: list[Path] = []
    fresh, old = (_beside(output, kind) for kind in ("new", "old"))
    try:
        for parent in reversed([output.parent, *output.parent.parents]):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        for left in _left_behind(output, "new"):
            shutil.rmtree(left, ignore_errors=True)
        fresh.mkdir()
        with contextlib.suppress(FileNotFoundError):
            os.lstat(output)  # a name may be too long where a cut one is not
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        _remove_empty(made)
        raise ConfigError(f"--output={output}: cannot be written ({error.strerror}); name another folder") from None
    done = False
    try:
        report = build(fresh)
        if output.exists():
            output.rename(old)
        fresh.rename(output)
        done = True
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not done and old.exists():
            old.rename(output)
        if not done:
            _remove_empty(made)
    for replaced in (old, *_left_behind(output, "old")):
        shutil.rmtree(replaced, ignore_errors=True)
    return report


def _beside(output: Path, kind: str) -> Path:
    """`.NAME.new.HOST.PID`; the name is cut where it is long."""
    return output.parent / f"{_stem(output, kind)}{os.getpid()}"


def _stem(output: Path, kind: str) -> str:
    name = os.fsencode(output.name)[:_SHOWN_BYTES].decode(errors="ignore")
    return f".{name}.{kind}.{socket.gethostname()[:64]}."


def _left_behind(output: Path, kind: str) -> Iterator[Path]:
    """Folders of conversions whose process is gone; those of other machines are not ours to judge."""
    stem = _stem(output, kind)
    for entry in os.listdir(output.parent):
        pid = entry.removeprefix(stem)
        if entry.startswith(stem) and pid.isdecimal() and not _alive(int(pid)):
            yield output.parent / entry


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return
