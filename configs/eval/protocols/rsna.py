"""RSNA Pneumonia challenge: lung opacity that suggests pneumonia, marked with boxes by radiologists.

    python -m data_prep.build --reader=rsna_pneumonia --input=DIR --output=data/rsna --splits=drawn
    python -m cxr_jax.evaluate --config=configs/eval/protocols/rsna.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/rsna

The published test set has no labels, so all splits are drawn by patient. The images are NIH's: a backbone that was
pretrained on NIH has seen them, and the report cannot know it. GLoRI: see nih14.py.

Result: not yet run.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = ("Pneumonia",)
    config.data.where.source = "rsna_pneumonia"
    return config
