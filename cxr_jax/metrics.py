"""What a run tells: metrics.jsonl, trackers such as TensorBoard, a progress bar, and pictures of the first batch.

In: scalars by name at log steps. Out: one JSON object a line with at least `step`, `loss`, every loss term,
`learning_rate`, `grad_norm`, `images_per_sec`, `data_wait_frac`, `goodput` and `secs_<phase>` (`phases`), the last two
since the process began; a step that only has values of an evaluation (the
online probe) has a line with `step` and those. Kinds of collapse that hold are listed under `collapse`.

A resumed run cuts metrics.jsonl back to the restored step first, so every step stands there once, in order.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from cxr_jax.data.records import DataError
from cxr_jax.trackers import TensorBoard, Writer

ROUNDING = 16  # precisions of the largest eigenvalue, below which a second moment's eigenvalue is noise


class Metrics:
    """Writes the metrics of one run; `start_step` is the step that training continues from.

    `trackers` get the same scalars and are closed with it. Of several processes only one may write; the others pass
    `writes=False` and are silent. `flops_share_per_image` is what an image costs in FLOPs over those that all devices
    do in a second at their peak; with it, `mfu` is logged.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        tensorboard: bool = True,
        trackers: Sequence[Writer] = (),
        writes: bool = True,
        flops_share_per_image: float = 0.0,
    ):
        self._flops_share = flops_share_per_image
        self._file = None
        self._trackers = list(trackers)
        if writes:
            path = workdir / "metrics.jsonl"
            cut_back(path, start_step)
            self._file = path.open("a")
            if tensorboard:
                self._trackers.append(TensorBoard(workdir, start_step))
        self._terminal = writes and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=start_step, disable=not self._terminal, unit="step")
        self._total_steps, self._lines_every = total_steps, max(1, total_steps // 20)
        self._next_line = start_step

    def write(self, step: int, values: dict[str, float], collapse: Sequence[str] = ()) -> None:
        """Log the values of `step`. Values that are not finite are written as null and named in `nonfinite`."""
        if not self._file:
            return
        if self._flops_share and "images_per_sec" in values:
            values = values | {"mfu": values["images_per_sec"] * self._flops_share}
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        row: dict[str, Any] = {"step": step} | {name: None if name in bad else value for name, value in values.items()}
        row |= ({"nonfinite": bad} if bad else {}) | ({"collapse": [*collapse]} if collapse else {})
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)
        if "loss" not in values:
            return
        text = f"loss {values['loss']:.4f}  {values['images_per_sec']:.1f} images/s"
        self._bar.set_postfix_str(text, refresh=False)
        if not self._terminal and step >= self._next_line:
            print(f"step {step}/{self._total_steps}  {text}", flush=True)
            self._next_line = step + self._lines_every

    def warn(self, text: str) -> None:
        """A line on stderr that leaves the progress bar whole."""
        if self._file:
            self._bar.write(text, file=sys.stderr)

    def advance(self) -> None:
        """One step done."""
        self._bar.update()

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        if self._file:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def is_clock(name: str) -> bool:
    """Whether a scalar of metrics.jsonl tells of time, and so differs between two runs that are otherwise the same."""
    return name in ("images_per_sec", "data_wait_frac", "goodput", "mfu") or name.startswith("secs_")


def cut_back(path: Path, step: int) -> None:
    """Drop rows of `step` and later, and a torn last line, by an atomic replacement.

    Raises DataError for a line before the last that is no row: rows behind it would be lost.
    """
    if not path.exists():
        return
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); move it away") from None
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            earlier = row["step"] < step
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is damaged ({line[:40]!r}); remove the line, or the file") from None
        if earlier:
            kept.append(line)
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


class Clock:
    """Images per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self):
        self._since, self._waited, self._images = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float, images: int) -> None:
        """Note that `seconds` passed until a batch of `images` came."""
        self._waited += seconds
        self._images += images

    def leave_out(self, seconds: float) -> None:
        """Note that `seconds` passed that were no training."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """The two figures; starts anew."""
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        figures = {"images_per_sec": self._images / elapsed, "data_wait_frac": min(self._waited / elapsed, 1.0)}
        self._since, self._waited, self._images = now, 0.0, 0
        return figures


def effective_rank(moment: Float[np.ndarray, "d d"]) -> float:
    """RankMe of embeddings whose second moment is `z^T z / rows`; NaN if that is not finite, 0 if it is zero.

        exp(-sum_k p_k ln p_k),   p_k = sigma_k / sum_j sigma_j + 1e-7,   sigma the singular values of z

    (Garrido et al. 2023.) The singular values are the roots of the moment's eigenvalues, up to a factor that p does not
    feel. An eigenvalue below the largest times `ROUNDING` of the dtype's precisions counts as 0: the root of noise is
    far from small. At most min(rows, d), so batches of different sizes are not to be compared.
    """
    if not np.isfinite(moment).all():
        return math.nan
    values = np.linalg.eigvalsh(moment.astype(np.float64))
    sigma = np.sqrt(np.where(values > values[-1] * ROUNDING * float(jnp.finfo(moment.dtype).eps), values, 0))
    if not sigma.any():
        return 0.0
    share = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def write_contact_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> None:
    """Rows of grey images `[h, w]` in 0..1 as one PNG, top-aligned on mid-grey."""
    height = sum(max(image.shape[0] for image in row) + gap for row in rows)
    width = max(sum(image.shape[1] + gap for image in row) for row in rows)
    sheet = np.full((height, width), 0.5, np.float32)
    y = 0
    for row in rows:
        x = 0
        for image in row:
            sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
            x += image.shape[1] + gap
        y += max(image.shape[0] for image in row) + gap
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(sheet, 0, 1) * 255).astype(np.uint8)).save(path)
