"""Losses of independent binary decisions, for common and for rare labels; unknown labels are silent in all of them.

In: logits `[grid, b, c]`, labels `[b, c]` (1, 0, a mixture between them, or below 0: unknown), how often each class is
known to be positive and negative in training. Out: one sum over the known labels for every head of the grid,

    L = sum over known labels of  w+ y L+(x) + w- (1 - y) L-(x),       p = sigmoid(x)

    term          L+                              L-                                source
    bce           -log p                          -log(1 - p)
    focal         -a (1 - p)^g log p              -(1 - a) p^g log(1 - p)           Lin et al., arXiv 1708.02002
    asymmetric    -(1 - p)^g+ log p               -q^g- log(1 - q), q = [p - clip]+ Ridnik et al., arXiv 2009.14119
    ldam          -log sigmoid(s (x - D+))        -log sigmoid(-s (x + D-))         Cao et al., arXiv 1906.07413

`terms` are added up: CheXFound adds `asymmetric` to `bce`. Of n+ positives and n- negatives,

    balance       w = (1 - B) / (1 - B^n) for either side, all weights scaled to mean 1    Cui et al., arXiv 1901.05555
                  from `balance_from_step` on, 1 before: deferred re-weighting             Cao et al.
    LDAM          D = `ldam_margin` (smallest n / n)^(1/4) for either side
    adjustment    x + t log(n+ / n-) in place of x, in training alone           Menon et al., arXiv 2007.07314

The last two were written for one class of many; a finding that is there or not is here two classes. The focusing
weights of `focal` and `asymmetric` are differentiated, as the equations say (ASL's released code holds them fixed).

`cumulative_link` is for the ordinal head and stands alone: the labels of a row say of rising levels whether they are
reached, and the level k itself has probability p_k - p_(k+1), with p_0 = 1 (McCullagh 1980). A row with an unknown
label is silent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Counts = Sequence[tuple[int, int]]  # known positives and negatives of every class in training
Sides = tuple[Array, Array]  # what a positive and a negative label cost, as `[grid, b, c]`


@dataclass(frozen=True)
class LabelLoss:
    """Which loss, by the keys of `config.label_loss`. Raises ValueError for values that make no sense.

    `balance_beta` 0 gives every label the same weight, `logit_adjustment` (t) 0 leaves the logits, `focal_alpha` below
    0 leaves both sides of `focal` unweighted.
    """

    terms: tuple[str, ...] = ("bce",)
    asymmetric_gamma_positive: float = 1.0
    asymmetric_gamma_negative: float = 4.0
    asymmetric_clip: float = 0.05
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    ldam_margin: float = 0.5
    ldam_scale: float = 1.0
    balance_beta: float = 0.0
    balance_from_step: int = 0
    logit_adjustment: float = 0.0

    def __post_init__(self):
        legal = (*TERMS, ORDINAL)
        if not self.terms or any(term not in legal for term in self.terms):
            raise ValueError(f"label_loss.terms={tuple(self.terms)}: legal are one or more of {', '.join(legal)}")
        if ORDINAL in self.terms and (len(self.terms) > 1 or self.balance_beta or self.logit_adjustment):
            raise ValueError(
                f"label_loss.terms={tuple(self.terms)}: {ORDINAL} is a loss of whole rows and stands alone; the "
                "others, balance_beta and logit_adjustment are of single labels"
            )
        for name in ("asymmetric_clip", "balance_beta"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"label_loss.{name}={getattr(self, name)}: legal are 0 up to, not including, 1")
        for name in ("asymmetric_gamma_positive", "asymmetric_gamma_negative", "focal_gamma", "ldam_margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"label_loss.{name}={getattr(self, name)}: must be at least 0")
        if self.ldam_scale <= 0 or self.focal_alpha > 1:
            raise ValueError(
                f"label_loss.ldam_scale={self.ldam_scale} must be above 0, focal_alpha={self.focal_alpha} at most 1"
            )

    @property
    def needs_counts(self) -> bool:
        """Whether it depends on how often each class occurs."""
        return bool("ldam" in self.terms or self.balance_beta or self.logit_adjustment)


def label_loss(
    logits: Float[Array, "grid b c"],
    labels: Shaped[Array, "b c"],
    loss: LabelLoss,
    counts: Counts = (),
    step: Array | None = None,
) -> Float[Array, " grid"]:
    """The loss summed over the known labels, for each head.

    Without `counts` every class counts as balanced, which is enough to plan a step. Raises ValueError when a loss that
    changes with the step is not told it.
    """
    known = labels >= 0
    wanted = jnp.clip(labels.astype(logits.dtype), 0, 1)
    if ORDINAL in loss.terms:
        return jnp.where(known.all(1), _cumulative_link(logits, wanted), 0).sum(1)
    seen = np.maximum(np.asarray(counts or ((1, 1),) * labels.shape[1], float), 1.0)
    x = logits + jnp.asarray(loss.logit_adjustment * np.log(seen[:, 0] / seen[:, 1]), logits.dtype)
    sides = [TERMS[term](x, loss, seen) for term in loss.terms]
    positive, negative = (sum(side[i] for side in sides) for i in range(2))
    weights = _weights(loss, seen, step, logits.dtype)
    cost = weights[:, 0] * wanted * positive + weights[:, 1] * (1 - wanted) * negative
    return jnp.where(known, cost, 0).sum((1, 2))


def masked_bce(logits: Float[Array, "grid b c"], labels: Shaped[Array, "b c"]) -> Float[Array, " grid"]:
    """Binary cross-entropy summed over the known labels, for each head."""
    return label_loss(logits, labels, LabelLoss())


def _bce(x: Array, loss: LabelLoss, seen: np.ndarray) -> Sides:
    del loss, seen
    return jax.nn.softplus(-x), jax.nn.softplus(x)


def _focal(x: Array, loss: LabelLoss, seen: np.ndarray) -> Sides:
    del seen
    positive, negative = (loss.focal_alpha, 1 - loss.focal_alpha) if loss.focal_alpha >= 0 else (1.0, 1.0)
    p, q = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
    gamma = loss.focal_gamma
    return positive * q**gamma * jax.nn.softplus(-x), negative * p**gamma * jax.nn.softplus(x)


def _asymmetric(x: Array, loss: LabelLoss, seen: np.ndarray) -> Sides:
    del seen
    positive = jax.nn.sigmoid(-x) ** loss.asymmetric_gamma_positive * jax.nn.softplus(-x)
    shifted = jnp.maximum(jax.nn.sigmoid(x) - loss.asymmetric_clip, 0)
    # Without a clip 1 - p may round to 0, whose logarithm softplus knows.
    entropy = -jnp.log1p(-shifted) if loss.asymmetric_clip else jax.nn.softplus(x)
    return positive, shifted**loss.asymmetric_gamma_negative * entropy


def _ldam(x: Array, loss: LabelLoss, seen: np.ndarray) -> Sides:
    margins = jnp.asarray(loss.ldam_margin * (seen.min() / seen) ** 0.25, x.dtype)
    scale = loss.ldam_scale
    return jax.nn.softplus(-scale * (x - margins[:, 0])), jax.nn.softplus(scale * (x + margins[:, 1]))


TERMS: dict[str, Callable[[Array, LabelLoss, np.ndarray], Sides]] = {
    "bce": _bce,
    "focal": _focal,
    "asymmetric": _asymmetric,
    "ldam": _ldam,
}
ORDINAL = "cumulative_link"


def _weights(loss: LabelLoss, seen: np.ndarray, step: Array | None, dtype) -> Float[Array, "c 2"]:
    """Weights of positive and negative labels by the effective number of either."""
    if not loss.balance_beta:
        return jnp.ones(seen.shape, dtype)
    weights = (1 - loss.balance_beta) / (1 - loss.balance_beta**seen)
    balanced = jnp.asarray(weights / weights.mean(), dtype)
    if not loss.balance_from_step:
        return balanced
    if step is None:
        raise ValueError(f"label_loss.balance_from_step={loss.balance_from_step}: the loss was not told the step")
    return jnp.where(step >= loss.balance_from_step, balanced, jnp.ones_like(balanced))


def _cumulative_link(x: Float[Array, "grid b c"], reached: Float[Array, "b c"]) -> Float[Array, "grid b"]:
    """-log of the probability of the row's level, whose logits fall along the classes.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), of which each logarithm is exact.
    """
    level = reached.sum(1).astype(int)
    # A level has a threshold below it and one above; the first and the last lack one.
    lower = jnp.pad(-jax.nn.softplus(-x), ((0, 0), (0, 0), (1, 0)))
    upper = jnp.pad(-jax.nn.softplus(x), ((0, 0), (0, 0), (0, 1)))
    between = jnp.log1p(-jnp.exp(x[..., 1:] - x[..., :-1]))
    between = jnp.pad(between, ((0, 0), (0, 0), (1, 1)))
    each = lower + upper + between
    return -jnp.take_along_axis(each, jnp.broadcast_to(level[None, :, None], (*x.shape[:2], 1)), axis=2)[..., 0]
