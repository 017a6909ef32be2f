"""TBX11K: lists, COCO boxes, a tuberculous image without boxes, a test set without labels; and the simplified form."""

import json

from publishers.paint import pixels, png, write, write_table

CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")


def imitate(root):
    files = {
        "health/h0001.png": "train", "sick/s0001.png": "train", "tb/tb0003.png": "train", "tb/tb1199.png": "val",
        "health/h3001.png": "val", "test/test_000001.png": "test", "extra/montgomery/train/MCUCXR_0001_0.png": "extra",
    }  # fmt: skip
    for seed, file in enumerate(files):
        write(root, f"TBX11K/imgs/{file}", png(pixels(seed, 64, 64)))
    of = {split: [file for file, where in files.items() if where == split] for split in ("train", "val", "test")}
    lists = {"TBX11K_train": of["train"], "TBX11K_val": of["val"], "TBX11K_trainval": of["train"] + of["val"]}
    lists["all_test"] = [*of["test"], "extra/montgomery/test/MCUCXR_0104_1.png"]
    for name, lines in lists.items():
        write(root, f"TBX11K/lists/{name}.txt", "".join(f"{line}\n" for line in lines))
    boxed = [("tb/tb0003.png", 1, [64, 128, 32, 256]), ("tb/tb0003.png", 2, [300.5, 100, 100, 100])]
    trainval = lists["TBX11K_trainval"]
    coco = {
        "images": [{"id": i, "file_name": f, "width": 512, "height": 512} for i, f in enumerate(trainval)],
        "annotations": [
            {"id": i, "image_id": trainval.index(file), "category_id": category, "bbox": box}
            for i, (file, category, box) in enumerate(boxed)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, 1)],
    }
    write(root, "TBX11K/annotations/json/TBX11K_trainval.json", json.dumps(coco))


def imitate_simplified(root):
    box = "{{'xmin': {}, 'ymin': 16.5, 'width': 64, 'height': 32}}"
    rows = [
        ["h0001.png", "512", "512", "train", "none", "no_tb", "none", "healthy"],
        ["s0001.png", "512", "512", "train", "none", "no_tb", "none", "sick_but_no_tb"],
        ["tb0003.png", "512", "512", "val", box.format(8), "tb", "latent_tb", "tb"],
        ["tb0003.png", "512", "512", "val", box.format(256), "tb", "latent_tb", "tb"],
    ]
    for seed, name in enumerate(sorted({row[0] for row in rows})):
        write(root, f"images/{name}", png(pixels(seed, 64, 64)))
    header = "fname,image_height,image_width,source,bbox,target,tb_type,image_type"
    write_table(root, "data.csv", header, rows)
