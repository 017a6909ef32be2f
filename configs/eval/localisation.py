"""Where a fine-tuned GLoRI head looks, against boxes: pointing game, share of attention in the boxes, IoU.

    python -m data_prep.build --reader=folder --input=DIR --boxes=boxes.csv --output=data/mine
    python -m cxr_jax.evaluate --config=configs/eval/localisation.py --workdir=runs/boxes --config.init_from=runs/glori

The records need boxes: `boxes.csv` has the columns file, label (or finding), x, y, w, h in px of the file. Scored are
the targets of the run on `test`, the learning rate is chosen on `val` by AUROC. Beside it stand other runs and, with
`baselines.floor`, two rivals that see no image: the middle of the picture and the mean training box.
`attention_images` is how many images the report shows; 0 shows none. A minute on a CPU.
"""

from configs.eval import head


def get_config():
    config = head.get_config()
    config.protocol = "localisation"
    return config
