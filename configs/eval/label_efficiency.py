"""What a head is worth that was trained on a part of the labels: fractions, shots, three draws by patient.

    python -m cxr_jax.evaluate --config=configs/eval/label_efficiency.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

The linear head of configs/eval/linear_cached.py; a shot is a patient with all images. Training patients come from the
training split, selection patients from the selection split, cut in the same proportion
(`label_efficiency.selection=all` keeps it whole).
"""

from ml_collections import ConfigDict

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.protocol = "label_efficiency"
    config.label_efficiency = ConfigDict(
        {
            "fractions": (0.01, 0.03, 0.1, 0.3, 1.0),
            "shots": (8,),
            "seeds": (0, 1, 2),
            "selection": "in_proportion",
        }
    )
    return config
