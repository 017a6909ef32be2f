"""NIH ChestX-ray14: 14 findings mined from reports, on the published test list (25,596 images).

    python -m data_prep.build --reader=nih_chestxray14 --input=DIR --output=data/nih
    python -m cxr_jax.evaluate --config=configs/eval/protocols/nih14.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/nih

The split `test` is the publisher's test_list.txt; train and val are drawn by patient from the rest, so no number here
compares with papers that drew their own test set. The labels are over 90 % right by the publisher's count. The head is
linear on cached CLS and mean patch tokens (3.7 GB of a ViT-L for all 112,120 images); for GLoRI train
configs/finetune/glori.py on these targets and score it with configs/eval/head.py.

Result: not yet run.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Emphysema", "Fibrosis", "Hernia",
        "Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax",
    )  # fmt: skip
    config.data.where.source = "nih_chestxray14"
    return config
