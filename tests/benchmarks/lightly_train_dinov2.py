"""LightlyTrain's DINOv2 on the images, with the network and for the steps of configs/pretrain/small_dino.py.

    VENV/bin/python tests/benchmarks/lightly_train_dinov2.py --data=DIR --output=peer
    python -m cxr_jax.convert --input=peer/exported_models/exported_last.pt --output=runs/peer --format=cxr_jax

VENV holds lightly-train (0.18.0), torch and torchvision. In: a folder with the labels.csv from which `data_prep.build`
makes the dataset. Out: the teacher, which `cxr_jax.evaluate` then scores like any run. Everything that is not named
here is LightlyTrain's own choice. Runs alone, without this repository's packages.
"""

import argparse
import csv
import functools
from pathlib import Path

import lightly_train
import torch
from lightly_train._models.dinov2_vit.dinov2_vit_src.layers import MemEffAttention, NestedTensorBlock
from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer

BATCH, EPOCHS = 32, 23  # of the 977 training images 30 batches: 690 steps
GLOBAL_PX, LOCAL_PX = 112, 48


def network() -> DinoVisionTransformer:
    """ViT-Ti/16, with the LayerScale and the drop path that LightlyTrain gives its DINOv2 networks."""
    return DinoVisionTransformer(
        img_size=GLOBAL_PX,
        patch_size=16,
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_ratio=4,
        ffn_layer="mlp",
        init_values=1e-5,
        drop_path_rate=0.3,
        drop_path_uniform=True,
        block_chunks=0,
        block_fn=functools.partial(NestedTensorBlock, attn_class=MemEffAttention),
    )


def training_images(data: Path, folder: Path) -> int:
    """Links to the images of the training split in `folder`, and how many these are."""
    folder.mkdir(parents=True)
    with (data / "labels.csv").open(newline="", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["split"] == "train"]
    for name in names:
        (folder / Path(name).name).symlink_to((data / name).resolve())
    return len(names)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    images = flags.output.with_name(flags.output.name + "_images")
    print(f"{training_images(flags.data, images)} images")
    torch.manual_seed(0)
    lightly_train.pretrain(
        out=str(flags.output),
        data=str(images),
        model=network(),
        method="dinov2",
        method_args={"output_dim": 1024},
        epochs=EPOCHS,
        batch_size=BATCH,
        num_workers=1,
        accelerator="cpu",
        precision="32-true",
        transform_args={"image_size": (GLOBAL_PX, GLOBAL_PX), "local_view": {"view_size": (LOCAL_PX, LOCAL_PX)}},
    )


if __name__ == "__main__":
    main()
