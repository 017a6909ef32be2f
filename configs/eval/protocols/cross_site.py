"""Trained at one hospital, tested at another: NIH to CheXpert, seven findings that both have.

    python -m cxr_jax.evaluate --config=configs/eval/protocols/cross_site.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.train_path=data/nih --config.data.path=data/chexpert

`data.train_where` and `data.train_path` choose training and selection rows, `data.where` and `data.path` the test rows;
what is empty of the former is as the latter, and the source `any` is all. Compare with nih14.py on the same findings:
the difference is what the head learnt of the hospital. `No Finding` of two sources is not the same thing, so it is not
among them.

Result: not yet run at this size.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Pneumonia", "Pneumothorax",
    )  # fmt: skip
    config.data.where.source = "chexpert"
    config.data.train_where.source = "nih_chestxray14"
    config.study = "average"
    return config
