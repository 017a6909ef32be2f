"""The door: flags in, one resolved config out, and what a run leaves behind about itself.

In: a config file named by `--config=file.py[:argument]` and `--config.key=value` overrides. Out: a locked ConfigDict
for the entry file, named arguments for everything else, `run.json`.

Exit codes: 0 done, 2 bad configuration or flags, 3 bad data, 4 told to stop and saved, 1 anything else.
"""

import contextlib
import errno
import fcntl
import inspect
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cxr_jax.config_hints import did_you_mean, nearest
from cxr_jax.config_reading import ConfigError, as_text, diff, flatten, read_flags
from cxr_jax.data.records import MANIFEST_NAME, DataError, WorkerError

EXIT_ERROR, EXIT_CONFIG, EXIT_DATA, EXIT_PREEMPTED, EXIT_INTERRUPTED = 1, 2, 3, 4, 130
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


# What a disk is to blame for.
STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
NAMES_ITS_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)+[= ]")  # a message that begins with its key, `head.num_heads=5 ...`
# What the transports of collectives and JAX's coordination service say when a peer has died.
PEER_LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|heartbeat|UNAVAILABLE|NCCL.*(remote|closed)", re.I)


class RunError(Exception):
    """A run that had to stop for a reason it can name. The message is one line; entries exit with `exit_code`."""

    exit_code = EXIT_ERROR


def define_flags(*, workdir: bool = True) -> None:
    """`--config` and `--workdir`, for the entries that have them."""
    config_flags.DEFINE_config_file("config", None, "Config file, for example configs/smoke.py.", lock_config=True)
    flags.DEFINE_bool("print_config", False, "Print the resolved config, one key a line, and stop.")
    flags.mark_flag_as_required("config")
    if not workdir:
        return
    flags.DEFINE_string("workdir", None, "Run directory; made if absent, continued if it holds checkpoints.")
    flags.register_multi_flags_validator(
        ["workdir", "print_config"],
        lambda given: bool(given["workdir"]) or given["print_config"],
        message="--workdir is missing or empty; name the run directory.",
    )


def define_process_flags() -> None:
    """A process's place among several, for the entries that run in several; see `start_distributed`."""
    flags.DEFINE_string(
        "coordinator_address", None, "host:port of process 0 of several; `auto` asks the cluster (TPU pod, Slurm, GKE)."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes train together.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, 0 .. num_processes - 1.", lower_bound=0)
    flags.DEFINE_integer("num_devices", None, "Refuse to run on any other number of devices in all.", lower_bound=1)


def start_distributed() -> None:
    """Join the other processes, if the flags say that there are any; call it before anything touches a device.

    JAX itself reads only the coordinator's address from the environment, so launchers pass all three flags. Each of
    several processes says where it is and what it sees. Raises ConfigError for another number of devices than
    `--num_devices`.
    """
    address, count, index = (flags.FLAGS[name].value for name in ("coordinator_address", "num_processes", "process_id"))
    given = [value is not None for value in (address, count, index)]
    if address == "auto":
        require(count is None and index is None, "--coordinator_address=auto finds count and id itself; drop the flags")
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ConfigError(f"--coordinator_address=auto: no cluster was found here ({error})") from None
    elif address is not None and count is not None and index is not None:
        require(index < count, f"--process_id={index} must be below --num_processes={count}")
        jax.distributed.initialize(address, count, index)
    else:
        require(
            not any(given),
            "--coordinator_address, --num_processes and --process_id belong together; "
            "give all three, none for a single process, or --coordinator_address=auto",
        )
    if any(given):
        print(
            f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
            f"{jax.local_device_count()} of {jax.device_count()} devices, {jax.devices()[0].device_kind}",
            flush=True,
        )
    wanted = flags.FLAGS.num_devices
    require(
        wanted is None or wanted == jax.device_count(),
        f"--num_devices={wanted}: {jax.device_count()} devices were found in {jax.process_count()} processes; "
        "check the machines, or the flag",
    )


def _fail(message: object, code: int) -> NoReturn:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    if jax.distributed.is_initialized():
        # A normal exit waits for the other processes, which wait for this one in their next collective.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    """Parse flags; anything wrong with them or with the config file is one line and exit code 2."""
    try:
        return read_flags(flags.FLAGS, argv)
    except ConfigError as error:
        _fail(error, EXIT_CONFIG)


def _explain_peer(error: Exception) -> str:
    return (
        f"process {jax.process_index()} of {jax.process_count()}: another process is gone "
        f"({str(error).strip().splitlines()[0][:200]}); its own output says why, and the same command goes on from the "
        "last checkpoint"
    )


def run_entry(main: Callable[[], None]) -> None:
    """Parse flags, run `main()`, and turn our errors into one line on stderr and their exit code."""

    def guarded(_):
        # At INFO, JAX lists accelerators it looked for in vain and Orbax tells a save in forty lines.
        logging.set_verbosity(logging.WARNING)
        try:
            if "config" in flags.FLAGS:
                if flags.FLAGS.print_config:
                    print(as_text(flags.FLAGS.config), end="")
                    return
                # Of several processes, one says it; those that `auto` counts do not know their number yet.
                if "process_id" not in flags.FLAGS or not flags.FLAGS.process_id:
                    print(describe_overrides(), flush=True)
            main()
        except ConfigError as error:
            _fail(error, EXIT_CONFIG)
        except DataError as error:
            _fail(error, EXIT_DATA)
        except RunError as error:
            _fail(error, error.exit_code)
        except WorkerError as error:
            _fail(error, EXIT_ERROR)
        except KeyboardInterrupt:
            _fail("stopped by Ctrl-C; the same command goes on from what was saved before", EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno not in STORAGE_ERRNOS:
                raise
            # Entries without a run directory call their place --output.
            given = (flags.FLAGS[name].value for name in ("workdir", "output") if name in flags.FLAGS)
            where = error.filename or next(filter(None, given), "the disk")
            _fail(f"{where}: {error.strerror}; mend the storage and start the same command again", EXIT_ERROR)
        except Exception as error:
            if not jax.distributed.is_initialized():
                raise
            if isinstance(error, jax.errors.JaxRuntimeError) and PEER_LOST.search(str(error)):
                _fail(_explain_peer(error), EXIT_ERROR)
            traceback.print_exc()
            _leave(EXIT_ERROR)

    app.run(guarded, flags_parser=_parse)


def lock_workdir(workdir: Path) -> None:
    """Make `workdir` and hold it until this process ends, however it ends.

    Raises ConfigError when it is a dataset, when it cannot be written, or when another process works in it.
    """
    require(
        not (workdir / MANIFEST_NAME).exists(),
        f"--workdir={workdir}: is a dataset (it holds {MANIFEST_NAME}); name another folder",
    )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Never closed: the kernel gives the lock back when the process is gone, so that a killed run leaves none.
        lock = os.open(workdir / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror}); name another folder") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"--workdir={workdir}: another process is working here; wait for it, stop it, or name another folder"
        ) from None
    except OSError as error:
        logging.warning("%s: this file system has no locks (%s); start no second run here", workdir, error.strerror)


def _parameters(function: Callable):
    # A Flax module's own signature hides its constructor's.
    constructor = function.__init__ if inspect.isclass(function) else function
    return inspect.signature(constructor).parameters.values()


def check_keys(prefix: str, kwargs: Iterable[str], *functions: Callable, given: Collection[str] = ()) -> None:
    """Raise ConfigError for a key of a config section that none of `functions` takes by name, or that is `given`."""
    legal = sorted(
        parameter.name
        for function in functions
        for parameter in _parameters(function)
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in (*given, "self")
    )
    for key in kwargs:
        if key not in legal:
            hint = did_you_mean(prefix, nearest(key, legal))
            raise ConfigError(f"config.{prefix}.{key} is not a key of {prefix}; legal are {', '.join(legal)}{hint}")


def call(function: Callable, prefix: str, kwargs: dict[str, Any], **given) -> Any:
    """`function(**kwargs, **given)`, `kwargs` being a config section.

    A value or combination that the function refuses (ValueError, TypeError) becomes a ConfigError naming the section.
    """
    try:
        return function(**kwargs, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(_with_key(str(error), prefix, kwargs)) from error


def _with_key(text: str, prefix: str, kwargs: Collection[str]) -> str:
    """A message behind the key that it is about, which it may begin with itself, as seen from the section or whole."""
    key = NAMES_ITS_KEY.match(text)
    if not key:
        return f"config.{prefix}: {text}"
    return f"config.{prefix}.{text}" if key[0].split(".")[0] in kwargs else f"config.{text}"


@contextlib.contextmanager
def naming(section: str) -> Iterator[None]:
    """Let a DataError say which config section asked for the data."""
    try:
        yield
    except DataError as error:
        raise DataError(f"config.{section}: {error}") from None


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition`."""
    if not condition:
        raise ConfigError(message)


def overrides() -> dict[str, Any]:
    """What the command line changed: `{"a.b": value}`."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def describe_overrides() -> str:
    """The config file, and below it a line for every key whose value the command line made another."""
    flag = flags.FLAGS["config"]
    file = flag.parser.parse(config_flags.get_config_filename(flag))
    changed = diff(flatten(file), flatten(flag.value))
    lines = [f"  config.{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
    return "\n".join([f"config {config_flags.get_config_filename(flag)}" + (", changed:" if lines else ""), *lines])


def environment() -> dict[str, Any]:
    """Versions, devices and threads: what bit-exact repetition depends on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "packages": packages,
        "devices": {"kind": device.device_kind, "count": jax.device_count(), "processes": jax.process_count()},
        "cpu_threads": int(os.environ.get("NPROC") or len(os.sched_getaffinity(0))),
        "commit": commit.stdout.strip() or "unknown",
    }


def write_run_json(workdir: Path, config: ConfigDict, extra: dict[str, Any]) -> None:
    """`run.json`: the resolved config, its difference from the file, the command, versions and devices."""
    content = {
        "command": " ".join(sys.orig_argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "overrides": overrides(),
        "config": config.to_dict(),
        "environment": environment(),
        **extra,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "run.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
    temporary.replace(path)
