"""Runs many command lines through the real entries, each in a fork of this one process.

In (stdin): JSON, a list of [module, arguments]. Out (stdout): JSON, a list of {"code", "stdout", "stderr"}. Importing
the entries takes seconds and is done once; no device is touched before the fork.
"""

import io
import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from cxr_jax import evaluate, train

# What the entries import stays loaded; they themselves run afresh in each fork.
for entry in (evaluate, train):
    del sys.modules[entry.__name__]


def run_forked(module: str, arguments: list[str]) -> dict:
    """Exit code and output of `python -m module arguments`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        with warnings.catch_warnings():
            # JAX warns of forks because of its threads; it has started none yet.
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            for number, file in zip((1, 2), files, strict=True):
                os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY, 0o644), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), write_through=True) for n in (1, 2))
            sys.argv = [module, *arguments]
            code = 0
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        _, status = os.waitpid(child, 0)
        out, err = (file.read_text() for file in files)
        return {"code": os.waitstatus_to_exitcode(status), "stdout": out, "stderr": err}


if __name__ == "__main__":
    answers = [run_forked(*case) for case in json.load(sys.stdin)]
    print(json.dumps(answers))
