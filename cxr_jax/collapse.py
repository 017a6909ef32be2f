"""Has pretraining collapsed? A rule on the scalars of log steps, for whatever objective logs them.

In: the scalars of a log step, by name. Out: warnings in plain words, the kinds that hold, and by choice the end of the
run. `signs` looks at one step; `CollapseWatch` waits until a sign persists, since a fresh network looks collapsed too.

    kind              sign                                                                              judged when
    uniform teacher   entropy of the assignments >= 0.99 ln K                                       warmed up
    few prototypes    entropy and cross-entropy <= 0.15 ln K, a handful of prototypes in use        warmed up
    images alike      spread of the image features < 0.02, or their effective rank < 1.5            warmed up
    not finite        updates were skipped since the last log step                                  always

K is the number of prototypes. A teacher that gives every prototype alike asks the student for nothing, whose loss then
ends at ln K; one that gives a few prototypes to all images lets the loss fall towards 0. Neither shows in the loss
alone. Image features are the teacher's CLS tokens, or the mean patches of an objective without a teacher.
Kinds whose scalars an objective does not log are not judged.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cxr_jax.config import RunError

MODES = ("warn", "stop")
UNIFORM_MARGIN = 0.01
NEAR_ZERO = 0.15  # two prototypes, drawn alike, have ln 2: 0.12 ln K at K = 256
FEW = 2.5
MIN_SPREAD = 0.02  # healthy runs stand above 0.5, a fresh network with LayerScale 1e-5 at 1e-4
MIN_RANK = 1.5
NOT_FINITE = "not finite"


class CollapseError(RunError):
    """Training stopped because it had collapsed and the config asked for that."""


class Assignment(NamedTuple):
    """Where a loss over prototypes is logged; `share` of the crops have a term in its mean."""

    what: str
    entropy: str
    use: str
    losses: tuple[str, ...]
    share: float


# iBOT hides patches in half of the global crops and divides by all of them.
ASSIGNMENTS = {
    "dino": Assignment("image", "teacher_entropy", "prototype_use", ("dino_local_loss", "dino_global_loss"), 1.0),
    "ibot": Assignment("patch", "ibot_teacher_entropy", "ibot_prototype_use", ("ibot_loss",), 0.5),
}

# What an objective has of whole images: words, spread, effective rank, what helps.
FEATURES = (
    (
        "the teacher's CLS tokens",
        "feature_spread",
        "teacher_cls_rank",
        "lower the learning rate, raise koleo_weight or the teacher's momentum",
    ),
    ("mean patches", "mean_patch_spread", "mean_patch_rank", "lower the learning rate, hide more patches"),
)


class Sign(NamedTuple):
    """Whether a kind of collapse shows, and what to say then."""

    shows: bool
    text: str


def _known(values: Mapping[str, float], names: Iterable[str]) -> bool:
    return all(math.isfinite(values.get(name, math.nan)) for name in names)


def signs(values: Mapping[str, float], num_prototypes: Mapping[str, int], images: int) -> dict[str, Sign]:
    """Every kind that these scalars can tell of; one whose scalars are absent or not finite is left out.

    `num_prototypes` is by loss (`dino`, `ibot`), `images` is the batch size.
    """
    found = {}
    for loss, count in num_prototypes.items():
        where = ASSIGNMENTS[loss]
        if not _known(values, (where.entropy, where.use, *where.losses)):
            continue
        entropy, use, uniform = values[where.entropy], values[where.use], math.log(count)
        cross = sum(values[name] for name in where.losses) / where.share
        found[f"uniform teacher ({loss})"] = Sign(
            entropy >= (1 - UNIFORM_MARGIN) * uniform,
            f"every {where.what} gets every prototype alike: the teacher's entropy {entropy:.2f} equals ln {count} = "
            f"{uniform:.2f} (cross-entropy {cross:.2f}), so nothing is learned; lower the teacher temperature, "
            "take fewer prototypes or a larger batch",
        )
        found[f"few prototypes ({loss})"] = Sign(
            # Shares are of min(rows, K), and there are at least as many rows as images.
            max(entropy, cross) <= NEAR_ZERO * uniform and use <= FEW / min(images, count),
            f"every {where.what} gets the same few prototypes (entropy {entropy:.3f}, cross-entropy {cross:.3f}, share "
            f"of prototypes in use {use:.3f}), so the loss is near 0 and nothing is learned; use centring=sinkhorn, "
            "raise the teacher temperature",
        )
    for what, spread_name, rank_name, advice in FEATURES:
        spread, rank = values.get(spread_name, math.nan), values.get(rank_name, math.nan)
        known = {"spread": spread, "effective rank": rank}
        known = {name: value for name, value in known.items() if math.isfinite(value)}
        if known:
            numbers = ", ".join(f"{name} {value:.3g}" for name, value in known.items())
            text = f"{what} are the same for all images ({numbers}); {advice}"
            found["images alike"] = Sign(spread < MIN_SPREAD or rank < MIN_RANK, text)
    return found


class CollapseWatch:
    """Remembers for how long signs have shown; its state is plain and goes into the checkpoint.

    A kind holds once its sign has shown at `patience` log steps in a row, counted from `after_step` on, and is over
    once it has not shown at as many. `mode` is `warn` or `stop`.
    """

    def __init__(
        self,
        *,
        mode: str,
        after_step: int,
        patience: int,
        num_prototypes: Mapping[str, int],
        images: int,
        saved: Mapping[str, Any] | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"log.on_collapse={mode!r}: legal are {', '.join(MODES)}")
        self._mode, self._after_step, self._patience = mode, after_step, patience
        self._num_prototypes, self._images = num_prototypes, images
        saved = saved or {"holds": {}, "against": {}, "skipped_updates": 0}
        self._holds: dict[str, str] = dict(saved["holds"])
        self._against: dict[str, int] = dict(saved["against"])
        self._skipped: int = saved["skipped_updates"]

    @property
    def holds(self) -> list[str]:
        """The kinds that hold."""
        return sorted(self._holds)

    def state(self) -> dict[str, Any]:
        """What `saved` takes: the kinds that hold, log steps in a row that speak against that, skipped updates."""
        return {"holds": dict(self._holds), "against": dict(self._against), "skipped_updates": self._skipped}

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take in the scalars of a log step; returns a line for every kind that begins or ends to hold."""
        events = []
        skipped = int(values.get("skipped_updates", 0))
        text = f"updates skipped since the last log step: {skipped - self._skipped} ({skipped} in all); loss or "
        text += "gradients were not finite, and these updates left parameters as they were"
        found = {NOT_FINITE: Sign(skipped > self._skipped, text)}
        self._skipped = skipped
        if step >= self._after_step:
            found |= signs(values, self._num_prototypes, self._images)
        for kind, sign in found.items():
            self._against[kind] = 0 if sign.shows == (kind in self._holds) else self._against.get(kind, 0) + 1
            if self._against[kind] < (1 if kind == NOT_FINITE else self._patience):
                continue
            self._against[kind] = 0
            if sign.shows:
                self._holds[kind] = sign.text
                events.append(f"step {step}: {kind}: {sign.text}")
            elif self._holds.pop(kind, None):
                events.append(f"step {step}: no longer {kind}")
        return events

    def check(self, step: int) -> str | None:
        """Why the run has to stop after `step`, if it has to; skipped updates alone are the loop's to judge."""
        reasons = [f"{kind}: {text}" for kind, text in self._holds.items() if kind != NOT_FINITE]
        if self._mode == "warn" or not reasons:
            return None
        return f"step {step}: {'; '.join(reasons)}; the state is saved, --config.log.on_collapse=warn continues"
