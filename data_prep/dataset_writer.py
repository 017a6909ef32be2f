"""Writes a dataset folder so that it appears whole or not at all.

In: record bytes, split by split, in the order they shall have. Out: `<name>-<split>.array_record-00000-of-00003`
shards, the TFDS metadata, and, last, manifest.json. Everything is written into the hidden sibling
`.<folder>.building`, which is renamed to the output folder at the end. A killed build leaves only that sibling:
nothing that opens as a dataset, and the next build to the same output removes it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from types import TracebackType

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from cxr_jax.data.records import MANIFEST_NAME, SPLITS, DataError, Manifest, features, read_manifest

# One record a group gives random access to each; JPEG and PNG bytes do not compress further.
WRITER_OPTIONS = "group_size:1,uncompressed"
DATASET_VERSION = "1.0.0"
# What a build leaves when it is killed: open shards, named shards, metadata.
_OURS = re.compile(r"^(train|val|test)-\d{5}$|\.array_record-|\.json(\.tmp)?$")
_FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass
class _Split:
    """Shards of one split written so far: file, number of records, bytes."""

    files: list[Path] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    num_bytes: int = 0


class DatasetWriter:
    """Context manager around one build; leaving it without `finish` removes everything written.

    Args:
      output: the folder to make.
      name: the dataset's name, part of the shards' file names.
      shard_bytes: a shard is closed once it holds this many bytes.
      overwrite: replace `output` if it is a finished dataset.

    Raises DataError if `output` exists and may not be replaced, or if another build is writing it.
    """

    def __init__(self, output: Path, name: str, shard_bytes: int, overwrite: bool):
        self._output = output.absolute()
        self._name = name
        self._shard_bytes = shard_bytes
        self._folder = self._output.parent / f".{self._output.name}.building"
        self._splits: dict[str, _Split] = {}
        self._writer: array_record_module.ArrayRecordWriter | None = None
        self._open_bytes = 0
        _check_output(self._output, overwrite)

    def __enter__(self) -> "DatasetWriter":
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._output}: cannot be made ({error.strerror}); choose another --output") from None
        # The lock dies with its process, so a leftover of a killed build is told from a build under way.
        self._lock = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataError(f"{self._output}: another build is writing it; wait for it or stop it") from None
        leftovers = list(self._folder.iterdir())
        foreign = [path.name for path in leftovers if not _OURS.search(path.name) or not path.is_file()]
        if foreign:
            os.close(self._lock)
            raise DataError(f"{self._folder}: holds {foreign[0]}, which no build wrote; move it away")
        for leftover in leftovers:
            leftover.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_shard_writer()
        # After `finish` the folder has its final name and nothing is left to remove.
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    def add(self, split: str, payload: bytes) -> None:
        """Appends the bytes of one record to a split; records of one split must come one after the other."""
        if split not in self._splits:
            self._close_shard()
            self._splits[split] = _Split()
        state = self._splits[split]
        if self._writer is None:
            file = self._folder / f"{split}-{len(state.files):05d}"
            state.files.append(file)
            state.lengths.append(0)
            self._writer = array_record_module.ArrayRecordWriter(str(file), WRITER_OPTIONS)
        self._writer.write(payload)
        state.lengths[-1] += 1
        state.num_bytes += len(payload)
        self._open_bytes += len(payload)
        if self._open_bytes >= self._shard_bytes:
            self._close_shard()

    def finish(self, manifest: Manifest) -> Manifest:
        """Names the shards, writes metadata and manifest, shows the folder; returns the manifest as read back."""
        self._close_shard()
        template = tfds.core.ShardedFileTemplate(
            data_dir=self._folder,
            dataset_name=self._name,
            filetype_suffix="array_record",
            template=_FILE_TEMPLATE,
        )
        shards, infos = {}, []
        for split in SPLITS:
            if split not in self._splits:
                continue
            state, split_template = self._splits[split], template.replace(split=split)
            for index, file in enumerate(state.files):
                final = Path(split_template.sharded_filepath(shard_index=index, num_shards=len(state.files)))
                file.rename(final)
                _check_shard(final, state.lengths[index])
                shards[final.name] = _sha256(final)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=state.lengths,
                    num_bytes=state.num_bytes,
                    filename_template=split_template,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=self._folder,
            features=features(len(manifest.vocabulary)),
            split_infos=infos,
            version=DATASET_VERSION,
            filename_template=template,
            check_data=False,
        )
        manifest = dataclasses.replace(manifest, shards=shards)
        (self._folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        self._show()
        return read_manifest(self._output)

    def _show(self) -> None:
        replaced = self._output.parent / f".{self._output.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self._output.exists():
            self._output.rename(replaced)
        self._folder.rename(self._output)
        shutil.rmtree(replaced, ignore_errors=True)

    def _close_shard(self) -> None:
        self._close_shard_writer()
        self._open_bytes = 0

    def _close_shard_writer(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; choose another --output")
    with contextlib.suppress(StopIteration):
        next(output.iterdir())
        if not (output / MANIFEST_NAME).is_file():
            raise DataError(f"{output}: is not empty and is no dataset of this tool; choose another --output")
        if not overwrite:
            raise DataError(f"{output}: is a finished dataset already; give --overwrite to replace it")


def _check_shard(file: Path, length: int) -> None:
    reader = array_record_module.ArrayRecordReader(str(file))
    found = reader.num_records()
    reader.close()
    if found != length:
        raise DataError(f"{file.name}: holds {found} of the {length} records written; is the disk full?")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
