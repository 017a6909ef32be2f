"""What a conversion was asked for, checked before anything is read: paths, and what the user knows of a file.

In: flags. Out: nothing, or one line that names the flag.
"""

import math
import os
from pathlib import Path

from cxr_jax.config import ConfigError
from cxr_jax.data.records import DataError
from cxr_jax.export.foreign import Hints


def check_source(flag: str, source: Path) -> None:
    """Raise ConfigError for a path that is not there, DataError for one that may not be read, saying why."""
    try:
        source.stat()
    except (FileNotFoundError, NotADirectoryError):
        link = f"; it is a link to {os.readlink(source)}" if source.is_symlink() else ""
        raise ConfigError(f"--{flag}={source}: no such file or folder{link}") from None
    except OSError as error:
        raise DataError(f"--{flag}={source}: cannot be read ({error.strerror})") from None
    for part in (source, *(source / name for name in ("config.json", "model.safetensors", "checkpoints"))):
        try:
            if part.is_dir():
                os.listdir(part)
            elif part.exists():
                part.open("rb").close()
        except NotADirectoryError:
            continue
        except OSError as error:
            raise DataError(f"--{flag}={part}: cannot be read ({error.strerror})") from None


def check_hints(hints: Hints) -> None:
    """Raise ConfigError for a number that no file can have, and for half of a normalisation."""
    for name in ("num_heads", "decoder_heads"):
        value = getattr(hints, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value}: legal are whole numbers from 1")
    if bool(hints.mean) != bool(hints.std):
        given, other = ("image_mean", "image_std") if hints.mean else ("image_std", "image_mean")
        raise ConfigError(f"--{given} is given without --{other}; give both, a number per channel, or neither")
    for name, values in (("image_mean", hints.mean or ()), ("image_std", hints.std or ())):
        if not all(math.isfinite(value) and (name == "image_mean" or value > 0) for value in values):
            legal = "finite numbers" + (" above 0" if name == "image_std" else "")
            raise ConfigError(f"--{name}={','.join(f'{value:g}' for value in values)}: legal are {legal}")
