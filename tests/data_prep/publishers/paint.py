"""What the imitations of published collections are made of: small pictures and tables."""

import csv
import gzip
import io

import numpy as np
from PIL import Image
from tiny_folder import jpeg


def pixels(seed, height=40, width=48):
    """Smooth noise over the whole range, uint8 [h, w]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def png(picture):
    """PNG bytes of pixels [h, w], 8 or 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write(root, file, content):
    """Writes bytes or text below `root`; jpeg bytes of a seed if `content` is a number."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        content = jpeg(content) if file.lower().endswith((".jpg", ".jpeg")) else png(pixels(content))
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_table(root, file, header, rows):
    """A CSV file, or .csv.gz, as publishers write them; `header` is one line of text."""
    buffer = io.StringIO()
    buffer.write(header + "\n")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    data = buffer.getvalue().encode()
    write(root, file, gzip.compress(data) if file.endswith(".gz") else data)
