"""Heads trained on features that are in memory: the whole grid at once, all steps in one compiled program.

In: the tokens of a frozen backbone over train, selection and test rows (`feature_cache`), labels, a recipe. Out: heads,
one for each pair of learning rate and weight decay, and the one that ranks the selection rows best.

    p_g <- p_g - eta_g s(t) (adam(dL/dp_g) + lambda_g p_g),     L = sum_g BCE_g,     s: warm-up and cosine

The loss is `Supervised.head_loss`, the one of `cxr_jax.train`, and the optimiser that of `cxr_jax.optim`: the same
mathematics without images. Heads of the grid share no parameter, so the sum trains each as if it were alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Integer

from cxr_jax import optim
from cxr_jax.data.records import DataError
from cxr_jax.evals.feature_cache import Arrays, as_features
from cxr_jax.evals.ranking import auroc
from cxr_jax.models.vit import Features
from cxr_jax.objectives.supervised import Supervised
from cxr_jax.schedules import warmup_cosine_schedule


@dataclass(frozen=True)
class Recipe:
    """The grid, and how long each of its heads is trained. Raises ValueError for numbers that make no sense."""

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    steps: int
    batch_size: int
    warmup_frac: float

    def __post_init__(self):
        for name in ("learning_rates", "weight_decays"):
            values = getattr(self, name)
            if not values or min(values) < 0:
                raise ValueError(f"training.{name}={values}: name one or more that are not negative")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.warmup_frac <= 1:
            raise ValueError(f"training.warmup_frac={self.warmup_frac} must be a fraction of the steps, 0 to 1")

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of every head."""
        return [(rate, decay) for rate in self.learning_rates for decay in self.weight_decays]

    def optimiser(self) -> optax.GradientTransformationExtraArgs:
        """AdamW with a rate and a decay for each head along the leading axis; fixed queries stay what they are."""
        rates, decays = (np.array(values) for values in zip(*self.grid, strict=True))
        return optim.adamw(
            learning_rate=warmup_cosine_schedule(1.0, 0.0, round(self.warmup_frac * self.steps), self.steps),
            weight_decay=lambda step: 1.0,
            clip_norm=None,
            lr_tables=(((r"/queries$", 0.0), (r".", rates)),),
            wd_table=((r".", decays),),
        )


class HeadTrainer:
    """`fit(rows, seed)` trains the grid on some of the train rows; `logits(params, arrays)` scores any rows.

    Compiled once, for whatever rows and seeds. `objective.learning_rates` must have as many entries as `recipe.grid`.
    """

    def __init__(self, objective: Supervised, recipe: Recipe, arrays: Arrays, labels: Integer[np.ndarray, "n c"]):
        if len(objective.learning_rates) != len(recipe.grid):
            raise ValueError(f"{len(objective.learning_rates)} heads for a grid of {len(recipe.grid)}")
        self.recipe = recipe
        self._features = jax.device_put(as_features(arrays))
        self._labels = jax.device_put(labels)
        tx = recipe.optimiser()

        def fit(features, labels, order, key):
            key_init, key_steps = jax.random.split(key)
            params = objective.init(key_init)

            def step(state, now):
                params, opt_state = state
                t, rows = now
                batch = Features(*(tokens[:, rows] for tokens in features))
                loss = jax.value_and_grad(objective.head_loss, has_aux=True)
                _, grads = loss(params, batch, labels[rows], jax.random.fold_in(key_steps, t), step=t)
                updates, opt_state = tx.update(grads, opt_state, params, step=t)
                return (optax.apply_updates(params, updates), opt_state), None

            (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), (jnp.arange(recipe.steps), order))
            return params

        self._fit = jax.jit(fit)
        self._logits = jax.jit(lambda params, features: objective.logits(params, features).swapaxes(0, 1))

    def fit(self, rows: Integer[np.ndarray, " m"], seed: int) -> dict:
        """Heads `[grid, ...]` trained on these train rows alone, in an order and from weights drawn from `seed`."""
        order = batch_order(rows, self.recipe.steps, self.recipe.batch_size, seed)
        return self._fit(self._features, self._labels, order, jax.random.key(seed))

    def logits(self, params: Mapping[str, Any], arrays: Arrays) -> Float[np.ndarray, "n grid c"]:
        """What every head of the grid says of every row, without dropout."""
        size, total = self.recipe.batch_size, len(arrays["cls"])
        parts = []
        for start in range(0, total, size):
            # The last part is filled up with its first row, so that there is one program.
            rows = np.arange(start, start + size)
            rows = np.where(rows < total, rows, start)
            some = as_features({name: tokens[rows] for name, tokens in arrays.items()})
            parts.append(np.asarray(self._logits(params, some))[: total - start])
        return np.concatenate(parts)


def batch_order(
    rows: Integer[np.ndarray, " m"], steps: int, batch_size: int, seed: int
) -> Integer[np.ndarray, "steps b"]:
    """Which rows each step sees: all of them in each pass, every pass permuted anew."""
    rng = np.random.default_rng(seed)
    passes = -(-steps * batch_size // len(rows))
    stream = np.concatenate([rng.permutation(rows) for _ in range(passes)])
    return stream[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def class_aurocs(scores: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, "n c"]) -> list[float]:
    """AUROC of every class that has one."""
    values = [auroc(scores[:, c].astype(np.float64), labels[:, c]) for c in range(labels.shape[1])]
    return [value for value in values if value is not None]


def choose(logits: Float[np.ndarray, "n grid c"], labels: Integer[np.ndarray, "n c"]) -> tuple[int, list[float]]:
    """The head with the best mean AUROC on the selection rows, and that of each; of equal ones, the surest of itself.

    "Surest" is the lowest cross-entropy, which few selection rows tell apart where they cannot tell ranks apart. A head
    whose logits are not finite has AUROC 0. Raises ValueError when no class has both labels.
    """
    values, losses = [], []
    for head in range(logits.shape[1]):
        found = class_aurocs(logits[:, head], labels)
        finite = np.isfinite(logits[:, head]).all()
        values.append(float(np.mean(found)) if found and finite else 0.0)
        # log(1 + exp(-z)) of the label's own sign, over the known labels.
        signed = np.where(labels == 1, 1, -1) * logits[:, head].astype(np.float64)
        losses.append(np.logaddexp(0, -signed)[labels >= 0].mean() if finite else np.inf)
    if not any(((labels[:, c] == 1).any() and (labels[:, c] == 0).any()) for c in range(labels.shape[1])):
        raise DataError("the selection rows have no class with both labels, so nothing can be chosen on them")
    best = min(range(len(values)), key=lambda i: (-values[i], losses[i]))
    return best, values


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds (0 for one)."""
    return {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
