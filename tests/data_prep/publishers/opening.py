"""Builds an imitation through the command and reads the dataset back."""

import numpy as np
import tensorflow_datasets as tfds

from cxr_jax.data.records import read_manifest
from data_prep import build


def command(reader, root, output, *flags):
    """Exit code of a build."""
    return build.main([f"--reader={reader}", f"--input={root}", f"--output={output}", "--workers=0", *flags])


def built(reader, root, output, *flags):
    """The manifest, and the records by image id without the source's name; each with its `split` and named `labels`."""
    assert command(reader, root, output, *flags) == 0
    manifest = read_manifest(output)
    builder = tfds.builder_from_directory(str(output))
    found = {}
    for split in manifest.counts["split"]:
        for record in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}):
            record = {key: value.decode() if key.endswith(("id", "view", "sex", "source")) else value
                      for key, value in record.items()}  # fmt: skip
            record["split"] = split
            record["labels"] = dict(zip(manifest.vocabulary, record["labels"].tolist(), strict=True))
            found[record["image_id"].removeprefix(f"{reader}/")] = record
    return manifest, found


def known(record):
    """A record's labels that are not unknown."""
    return {name: label for name, label in record["labels"].items() if label != -1}


def boxes(record):
    """A record's boxes as (label, x, y, w, h), rounded to a tenth of a pixel."""
    columns = record["boxes"]
    numbers = np.round(np.asarray([columns[key] for key in "xywh"], float).T, 1).tolist()
    return [(label.decode(), *row) for label, row in zip(columns["label"], numbers, strict=True)]
