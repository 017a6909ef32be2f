"""CheXpert, the five findings of its competition, on the radiologists' labels, by study.

    python -m data_prep.build --reader=chexpert --input=CheXpert-v1.0-small --output=data/chexpert --uncertain=unknown
    python -m cxr_jax.evaluate --config=configs/eval/protocols/chexpert5.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/chexpert

Uncertain labels are masked out in training (`--uncertain=positive|negative` of the build are the publisher's U-Ones and
U-Zeros). Scores are averaged over the images of a study, as CheXpert is judged by study. The published `val` has 234
images: it chooses here, and `test`, where the publisher's labels of it are, is scored.

Result: not yet run.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion",
    )  # fmt: skip
    config.data.where.source = "chexpert"
    config.features.max_gb = 8.0
    config.study = "average"
    return config
