"""Runs a pure function over tasks on Apache Beam: the same results as local processes, on other machines.

In: a picklable function and its tasks. Out: the results, in the tasks' order, once all are done. Tasks and results
travel as text files (`sample_text`) in a folder that every worker sees; the job's graph holds only their names and
sha256, so a million images do not make it larger than a runner takes. A retried or doubled task writes the same bytes.
"""

import functools
import hashlib
import logging
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cxr_jax.data.records import DataError
from data_prep.atomic import write_bytes
from data_prep.parallel import at_once, quiet_libraries
from data_prep.readers import FlagError
from data_prep.sample_text import from_text, to_text
from data_prep.storage import Location, remove_tree, streams

# Beam tells of absent optional packages while it is imported.
logging.disable(logging.WARNING)
try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError:
    beam = None
finally:
    logging.disable(logging.NOTSET)


class BeamEngine:
    """Calls run one Beam job each.

    Args:
      runner: Beam's name of a runner.
      options: Beam's own flags in one string.
      workers: processes of the DirectRunner; other runners have flags of their own.
      folder: where tasks and results are put; every worker must see it under this path.

    Raises FlagError if Beam is not installed or does not know the options.
    """

    def __init__(self, runner: str, options: str, workers: int, folder: Location):
        if beam is None:
            raise FlagError("--beam_runner needs Apache Beam: python -m pip install -r requirements-beam.txt")
        self._runner, self._folder = runner, folder.absolute()
        given = shlex.split(options)
        flags = ["--default_sdk_harness_log_level=ERROR", *given]
        if runner == "DirectRunner" and workers > 1:
            flags = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}", *flags]
        logging.getLogger("apache_beam").setLevel(logging.ERROR)
        self._options = PipelineOptions(flags)
        known = self._options.get_all_options()
        unknown = [flag for flag in given if flag.split("=")[0].removeprefix("--").removeprefix("no_") not in known]
        if unknown:
            raise FlagError(f"--beam_options: Beam knows no {unknown[0]}; flags are written as --name=value")

    def __call__(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        remove_tree(self._folder)
        # A folder of its own: workers of a job whose starter was killed may go on and write results of theirs.
        job = self._folder / uuid.uuid4().hex
        job.mkdir(parents=True)
        files = list(at_once(functools.partial(_put, job), enumerate(tasks), streams(job)))
        if files:
            run = functools.partial(run_task, function=function, folder=job)
            try:
                with beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
                    # Without the reshuffle a runner may fuse all tasks into one worker's.
                    _ = pipeline | beam.Create(files) | beam.Reshuffle() | beam.Map(run)
            # A runner raises what a worker raised, as a text, in exceptions of its own.
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                raise OSError(None, f"the Beam job failed: {lines[-1].strip()}", self._runner) from None
        yield from at_once(functools.partial(_result, job), (name for name, _ in files), streams(job))
        remove_tree(self._folder)


def _put(job: Location, numbered: tuple[int, Any]) -> tuple[str, str]:
    """Writes one task; returns its name and sha256."""
    name, content = f"{numbered[0]:06d}", to_text(numbered[1]).encode()
    write_bytes(job / f"{name}.task", content, flush=False)
    return name, hashlib.sha256(content).hexdigest()


def _result(job: Location, name: str) -> Any:
    return from_text((job / f"{name}.result").read_text())


def run_task(file: tuple[str, str], function: Callable[[Any], Any], folder: Location) -> None:
    """Reads one task, proves that it is the one the job was made for, runs it and writes its result."""
    quiet_libraries()
    name, sha256 = file
    content = (folder / f"{name}.task").read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{folder / name}.task: is not what this job wrote")
    result = to_text(function(from_text(content.decode())))
    write_bytes(folder / f"{name}.result", result.encode(), flush=False)
