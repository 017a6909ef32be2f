"""JSRT: raw big-endian negatives of 12 bits, tables in two forms with old Mac line ends and "?", SCR's GIF masks."""

import io

import numpy as np
from PIL import Image
from publishers.paint import pixels, png, write

SIDE = 2048


def raw(seed):
    """The bytes of an .IMG file, and the picture it shows as 8 bits."""
    shown = pixels(seed, 32, 32).repeat(SIDE // 32, 0).repeat(SIDE // 32, 1)
    return (4095 - shown.astype(int) * 16).astype(">u2").tobytes(), shown


def imitate(root, suffix=".IMG"):
    for seed, name in enumerate(("JPCLN001", "JPCNN001")):
        write(root, f"All247images/{name}{suffix}", raw(seed)[0] if suffix == ".IMG" else png(pixels(seed, 256, 256)))
    nodules = "JPCLN001.IMG\t5\t15\t53\tMale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer\r"
    write(root, "Clinical_Information/CLNDAT_EN.txt", nodules)
    write(root, "Clinical_Information/CNNDAT_EN.TXT", "JPCNN001.IMG        ?  female     non-nodule\r")
    for side, columns in (("left", slice(600, 900)), ("right", slice(100, 400))):
        mask = np.zeros((1024, 1024), np.uint8)
        mask[300:800, columns] = 255
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "GIF")
        write(root, f"scratch/fold1/masks/{side} lung/JPCLN001.gif", buffer.getvalue())
