"""Where a fine-tuned GLoRI head looks, against boxes: pointing game, share of attention in the boxes, IoU.

    python -m data_prep.build --reader=folder --input=DIR --boxes=boxes.csv --output=data/mine
    python -m cxr_jax.evaluate --config=configs/eval/localisation.py --workdir=runs/boxes --config.init_from=runs/glori

The records need boxes: `boxes.csv` has the columns file, label (or finding), x, y, w, h in px of the file. Scored are
the targets of the run on `test`, the learning rate is chosen on `val` by AUROC. Beside it stand other runs and, with
`baselines.floor`, two rivals that see no image: the middle of the picture and the mean training box.
`attention_images` is how many images the report shows; 0 shows none.

Measured with the boxes of the public NIH images, of which only Pneumonia has any outside train (13 in test): the
backbone of configs/pretrain/small_mae.py, configs/finetune/small_glori.py with --config.data.targets="('Pneumonia',)"
and --config.data.where.source=nih-chestxray14 (135 s of CPU time), this protocol (24 s). 13 images of 12 patients are
few:

                                highest point in a box    share of the map in the boxes
    attention                   0.31 [0.00, 0.58]         0.23 [0.07, 0.40]
    the same, random network    0.00 [0.00, 0.00]         0.05 [0.03, 0.07]
    middle of the picture       0.23 [0.00, 0.50]         0.20 [0.10, 0.35]
    mean of 12 training boxes   0.30 [0.09, 0.54]         0.31 [0.16, 0.49]
    chance                      0.12 [0.05, 0.21]         the same

By its share in the boxes attention is above that of a random network (+0.18 [0.05, 0.33]) and by neither score told
apart from the two rivals that see no image; in two of the six pictures shown its peak lies in the other lung. The
head's AUROC on val is 0.83, but these images are told by their file size as well, so it need not look for the finding.
"""

from configs.eval import head


def get_config():
    config = head.get_config()
    config.protocol = "localisation"
    return config
