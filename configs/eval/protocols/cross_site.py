"""Trained at one hospital, tested at another: NIH to CheXpert, seven findings that both have.

    python -m cxr_jax.evaluate --config=configs/eval/protocols/cross_site.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.train_path=data/nih --config.data.path=data/chexpert

`data.train_where` and `data.train_path` choose training and selection rows, `data.where` and `data.path` the test rows;
what is empty of the former is as the latter, and the source `any` is all. Compare with nih14.py on the same findings:
the difference is what the head learnt of the hospital. `No Finding` of two sources is not the same thing, so it is not
among them.

Result: not yet run at this size. Tried small: a linear head on the backbone of configs/pretrain/small_mae.py (2,000
steps), trained on NIH for view (AP or PA), tested on a COVID-19 collection,

    python -m cxr_jax.evaluate --config=configs/eval/linear_cached.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small --config.data.targets="('view:AP',)" \\
        --config.data.train_where.source=nih-chestxray14 --config.data.where.source=covid-image-collection

                                          pretrained           random network       hand-made
    NIH to NIH (198 test images)          0.97 [0.94, 0.99]    0.94 [0.91, 0.97]    0.99 [0.99, 1.00]
    NIH to the collection (46 images)     0.47 [0.31, 0.70]    0.59 [0.37, 0.80]    0.71 [0.50, 0.86]

What tells AP from PA at one hospital does not do so in pictures cut out of publications.
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
