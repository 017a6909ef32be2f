"""Folders of a bucket for the tests of data_prep: filled from local ones, and read back."""

from pathlib import Path

from data_prep.storage import StorePath


def upload(folder: Path, target: StorePath) -> None:
    """Copies all files below a local folder into a bucket."""
    for file in folder.rglob("*"):
        if file.is_file():
            (target / str(file.relative_to(folder))).upload(file)


def bucket_bytes(folder: StorePath) -> dict[str, bytes]:
    """All objects below a folder of a bucket by name."""
    return {name: (folder / name).read_bytes() for name in folder.below()}
