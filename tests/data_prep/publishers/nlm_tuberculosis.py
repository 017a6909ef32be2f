"""Shenzhen and Montgomery: labels in file names, readings in several hands, Montgomery's two masks an image."""

import io

import numpy as np
from PIL import Image
from publishers.paint import pixels, png, write

SHENZHEN = {  # name -> reading
    "CHNCXR_0001_0": "male 45yrs\nnormal\n",
    "CHNCXR_0002_0": "Female, 28yrs\r\nnormale\r\n\r\n",
    "CHNCXR_0003_0": "femal 16month\n\nbilateral PTB\n",
    "CHNCXR_0327_1": "male  64days\nPTB in the left upper field ,STB\n",
    "CHNCXR_0328_1": None,
}
MONTGOMERY = {
    "MCUCXR_0001_0": "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n",
    "MCUCXR_0104_1": "Patient's Sex: M \nPatient's Age: 040Y\nimproved aeration; cavitary nodular infiltrate in RUL.\n",
}


def palette_png(picture):
    """As some of the sets' images are stored: a palette of greys."""
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("RGB").quantize(256).save(buffer, "PNG")
    return buffer.getvalue()


def imitate_shenzhen(root):
    for seed, (name, reading) in enumerate(SHENZHEN.items()):
        write(root, f"ChinaSet_AllFiles/CXR_png/{name}.png", palette_png(pixels(seed)))
        if reading is not None:
            write(root, f"ChinaSet_AllFiles/ClinicalReadings/{name}.txt", reading)
    write(root, "ChinaSet_AllFiles/CXR_png/Thumbs.db", b"not an image")
    mask = np.zeros((20, 24), np.uint8)  # half the image's size
    mask[5:10, 6:12] = 255
    write(root, "mask/CHNCXR_0327_1_mask.png", png(mask))


def imitate_montgomery(root, right=True):
    for seed, (name, reading) in enumerate(MONTGOMERY.items()):
        write(root, f"MontgomerySet/CXR_png/{name}.png", png(pixels(seed)))
        write(root, f"MontgomerySet/ClinicalReadings/{name}.txt", reading)
        for side, columns in (("left", slice(30, 40)), ("right", slice(5, 15)))[: 1 + right]:
            mask = np.zeros((40, 48), bool)
            mask[10:30, columns] = True
            write(root, f"MontgomerySet/ManualMask/{side}Mask/{name}.png", png(mask))
