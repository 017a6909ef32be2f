"""The RSNA challenge as PNG copies: a row a box, the class repeated as often, test images without labels."""

import json

from publishers.paint import pixels, png, write, write_table

IMAGES = {  # patientId -> class, boxes
    "0004cfab": ("No Lung Opacity / Not Normal", []),
    "00436515": ("Lung Opacity", [(264.0, 152.0, 213.0, 379.0), (562.0, 152.0, 256.0, 453.0)]),
    "003d8fa0": ("Normal", []),
}


def imitate(root, write_image=None):
    """`write_image(root, folder, name, seed)` writes an image; PNGs of 64 px if it is not given."""

    def write_png(root, folder, name, seed):
        write(root, f"{folder}/{name}.png", png(pixels(seed, 64, 64)))

    write_image = write_image or write_png
    labels, classes = [], []
    for seed, (name, (kind, boxes)) in enumerate(IMAGES.items()):
        write_image(root, "stage_2_train_images", name, seed)
        labels += [[name, *box, 1] for box in boxes] or [[name, "", "", "", "", 0]]
        classes += [[name, kind]] * max(1, len(boxes))
    write_image(root, "stage_2_test_images", "0000a175", 9)
    write_table(root, "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", labels)
    write_table(root, "stage_2_detailed_class_info.csv", "patientId,class", classes)


def imitate_mapping(root):
    """Two of the images are of one patient of the NIH's."""
    files = {"0004cfab": "00000011_006.png", "00436515": "00000011_007.png", "0000a175": "00000502_001.png"}
    entries = [{"subset_img_id": name, "img_id": file, "orig_labels": ["Mass"]} for name, file in files.items()]
    write(root, "pneumonia-challenge-dataset-mappings_2018.json", json.dumps(entries))
