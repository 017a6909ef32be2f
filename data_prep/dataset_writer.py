"""The last step of a dataset folder: TFDS metadata and, last, manifest.json; and a whole dataset from records in hand.

In: a folder with shards of their final names, their lengths and bytes, and the manifest so far. Out: a folder that
`tfds.builder_from_directory` opens. `DatasetWriter` is for records that someone holds already; `build` makes shards
from parts and only ends here.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import tensorflow_datasets as tfds

from cxr_jax.data.records import MANIFEST_NAME, SPLITS, Manifest, features, read_manifest
from data_prep.atomic import write_bytes
from data_prep.building_folder import BuildingFolder
from data_prep.chunks import RecordWriter
from data_prep.scratch import scratch
from data_prep.shards import sha256_of, shard_name
from data_prep.storage import Location, StorePath

DATASET_VERSION = "1.0.0"
_FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass
class SplitShards:
    """The shards of one split, in order: names, numbers of records, and the bytes of all records."""

    names: list[str] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    num_bytes: int = 0


def write_metadata(folder: Location, manifest: Manifest, splits: dict[str, SplitShards]) -> None:
    """Writes the metadata of TFDS and then the manifest, whose `shards` must hold their sha256."""
    if isinstance(folder, StorePath):
        with tempfile.TemporaryDirectory(dir=scratch()) as name:
            local = Path(name)
            # TFDS looks at the names of shards, not into them.
            for shard in manifest.shards:
                (local / shard).touch()
            _write_tfds(local, manifest, splits)
            for file in sorted(local.glob("*.json")):
                write_bytes(folder / file.name, file.read_bytes())
    else:
        _write_tfds(folder, manifest, splits)
    write_bytes(folder / MANIFEST_NAME, manifest.to_json().encode())


def _write_tfds(folder: Path, manifest: Manifest, splits: dict[str, SplitShards]) -> None:
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=manifest.name, filetype_suffix="array_record", template=_FILE_TEMPLATE
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=splits[split].lengths,
            num_bytes=splits[split].num_bytes,
            filename_template=template.replace(split=split),
        )
        for split in SPLITS
        if split in splits
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(len(manifest.vocabulary)),
        split_infos=infos,
        version=DATASET_VERSION,
        filename_template=template,
        check_data=False,
    )


class DatasetWriter:
    """Writes a dataset from record bytes in hand; leaving it without `finish` removes everything written.

    Args:
      output: the folder to make.
      name: the dataset's name, part of the shards' file names.
      shard_bytes: a shard is closed once it holds this many bytes.
      overwrite: replace `output` if it is a finished dataset.

    Raises DataError if `output` exists and may not be replaced, or if another build is writing it.
    """

    def __init__(self, output: Path, name: str, shard_bytes: int, overwrite: bool):
        self._output, self._name, self._shard_bytes = output, name, shard_bytes
        self._folder = BuildingFolder(output, overwrite)
        self._splits: dict[str, SplitShards] = {}
        self._writer: RecordWriter | None = None
        self._open_bytes = 0

    def __enter__(self) -> "DatasetWriter":
        self._folder.__enter__()
        self._folder.claim({"writer": self._name}, restart=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_shard()
        shutil.rmtree(self._folder.path, ignore_errors=True)
        self._folder.__exit__(kind, error, trace)

    def add(self, split: str, payload: bytes) -> None:
        """Appends the bytes of one record to a split; records of one split must come one after the other."""
        if split not in self._splits:
            self._close_shard()
            self._splits[split] = SplitShards()
        shards = self._splits[split]
        if self._writer is None:
            shards.names.append(f"{split}-{len(shards.names):05d}")
            shards.lengths.append(0)
            self._writer = RecordWriter(self._folder.dataset / shards.names[-1])
        self._writer.write(payload)
        shards.lengths[-1] += 1
        shards.num_bytes += len(payload)
        self._open_bytes += len(payload)
        if self._open_bytes >= self._shard_bytes:
            self._close_shard()

    def finish(self, manifest: Manifest) -> Manifest:
        """Names the shards, writes metadata and manifest, shows the folder; returns the manifest as read back.

        Of `manifest` its shards and its counts by split are filled in.
        """
        self._close_shard()
        hashes = {}
        for split, shards in self._splits.items():
            for index, name in enumerate(shards.names):
                final = shard_name(self._name, split, index, len(shards.names))
                (self._folder.dataset / name).rename(self._folder.dataset / final)
                hashes[final] = sha256_of(self._folder.dataset / final)
        ordered = {name: hashes[name] for split in SPLITS for name in sorted(hashes) if f"-{split}." in name}
        counts = manifest.counts | {"split": {split: sum(shards.lengths) for split, shards in self._splits.items()}}
        manifest = dataclasses.replace(manifest, shards=ordered, counts=counts)
        write_metadata(self._folder.dataset, manifest, self._splits)
        self._folder.show()
        return read_manifest(self._output)

    def _close_shard(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
        self._open_bytes = 0
