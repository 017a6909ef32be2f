"""Flags of the launchers' own commands: what is wrong with them is one line and exit code 2."""

import argparse
import sys
from typing import NoReturn

EXIT_FLAGS = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that knows whole names only, and complains in one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(EXIT_FLAGS)
