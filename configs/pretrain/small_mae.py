"""Masked autoencoding on a small ViT (width 192, twelve blocks, 112 px), for a thousand radiographs on a CPU.

    python -m data_prep.build --reader=folder --input=DIR --output=data/cxr_small
    python -m cxr_jax.train --config=configs/pretrain/small_mae.py --workdir=runs/small_mae \
        --config.data.path=data/cxr_small

The recipe of configs/pretrain/mae_vitl16.py with a decoder of 4 blocks of width 128, batch 32 and a base learning rate
ten times higher, for a run of 500 steps. The encoder reads 12 of 49 patches.

Hardware: two CPU cores. Result: not yet run.
"""

from configs.pretrain import mae_vitl16


def get_config():
    config = mae_vitl16.get_config()
    config.batch_size = 32
    config.total_steps = 500
    config.model.update(variant="vit_ti16", image_size=112, remat="none")
    config.decoder.update(width=128, depth=4, num_heads=4)
    config.optim.base_learning_rate = 1.5e-3
    config.dtypes.compute = "float32"
    config.data.update(threads=2, prefetch=4)
    config.checkpoint.update(every_steps=100, keep=3)
    config.log.update(every_steps=10, examples_every_steps=250)
    return config
