"""What a fine-tuning asks of its training labels, and which learning rates it trains."""

import json

import numpy as np
import optax
import pytest

from configs.finetune import cxr_lt, glori
from cxr_jax.config import ConfigError
from cxr_jax.data.augment import CropRecipe
from cxr_jax.data.records import DataError, Manifest
from cxr_jax.data.source import Split
from cxr_jax.experiments.base import Experiment
from cxr_jax.experiments.supervised import chosen_rates, make_label_loss, with_labels
from cxr_jax.objectives.label_losses import LabelLoss
from cxr_jax.objectives.supervised import Supervised


class GivenLabels(Split):
    """A split of which only the labels are asked."""

    def labels(self, targets):
        return self.records[:, : len(targets)]


def split(table):
    return GivenLabels(table, range(len(table)), Manifest("", "", (), {}, {}, {}), "train")


def experiment(targets):
    objective = Supervised(
        model={},
        head_name="linear",
        head={},
        learning_rates=(0.1,),
        crop=CropRecipe(size=16, scale=(1.0, 1.0)),
        label_loss=LabelLoss(("ldam",)),
    )
    return Experiment(
        objective, optax.with_extra_args_support(optax.identity()), {}, {"targets": targets, "label_counts": []}, None
    )


TABLE = np.array([[1, -1, -1], [0, 1, -1], [0, 1, -1], [-1, 1, -1]], np.int8)


def test_the_loss_and_the_checkpoint_know_how_often_each_class_occurs_in_training():
    known = with_labels(experiment(["A", "B"]), split(TABLE))
    assert known.objective.label_counts == ((1, 2), (3, 0)) and known.meta["label_counts"] == [[1, 2], [3, 0]]
    # A run that goes on has its counts, and reads no labels for them.
    assert with_labels(known, split(TABLE[:1])) is known


def test_a_column_that_is_all_unknown_is_refused_by_its_name():
    with pytest.raises(DataError, match=r"config\.data\.targets: 'C' is unknown in all 4 rows of split 'train'"):
        with_labels(experiment(["A", "B", "C"]), split(TABLE))


def test_fractions_of_the_run_become_steps():
    config = cxr_lt.get_config()
    config.label_loss.update(balance_beta=0.99, balance_from_frac=0.8)
    loss = make_label_loss(config)
    assert loss.balance_from_step == round(0.8 * config.total_steps) and loss.terms == ("bce", "asymmetric")


def test_a_run_on_all_rows_has_the_one_rate_that_an_evaluation_chose(tmp_path):
    config = glori.get_config()
    assert len(chosen_rates(config, None)) == 13
    config.data.split = "train+val"
    with pytest.raises(ConfigError, match=r"config\.data\.split='train\+val': .*optim\.select_from"):
        chosen_rates(config, None)
    config.optim.select_from = str(tmp_path)
    with pytest.raises(ConfigError, match="expected the folder of an evaluation"):
        chosen_rates(config, None)
    chosen = {"learning_rate": 2e-3, "selection_auroc": {"0.001": 0.6, "0.002": 0.7}}
    (tmp_path / "results.json").write_text(json.dumps({"evaluated": {"chosen": chosen}}))
    assert chosen_rates(config, None) == (2e-3,)
    # Once the run has a checkpoint, the evaluation may be gone.
    (tmp_path / "results.json").unlink()
    assert chosen_rates(config, {"learning_rates": [2e-3]}) == (2e-3,)
