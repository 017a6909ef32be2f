"""Masked autoencoding with ViT-L/16, as MAE's authors published it (He et al., arXiv 2111.06377), on one grey channel.

    python -m cxr_jax.train --config=configs/pretrain/mae_vitl16.py --workdir=runs/mae_vitl16 --config.data.path=DATASET

Stands for the pretraining of CXRBase (arXiv 2410.08861). Known of CXRBase: it is a masked autoencoder, pretrained on
1.04 M chest X-rays without labels and then fine-tuned. Not known, because it could not be read: mask ratio, decoder,
epochs, learning rate, batch, resolution, initialisation, and which datasets. Every such number here is MAE's own: mask
ratio 0.75, decoder 8 blocks x 512 x 16 heads, batch 4,096, 224 px, 1.5e-4 x batch / 256, warm-up 40 of 800 epochs;
203,125 steps are 800 epochs of 1.04 M images. Departures: random initialisation as published, but a patch has 256
values instead of 768, as the pictures are grey.

Hardware: a pod (64 images a chip on 64 chips). Result: not yet run.
"""

from configs import base


def get_config():
    config = base.pretraining()
    config.update(batch_size=4096, total_steps=203_125)
    config.data.threads = 16
    config.dtypes.compute = "bfloat16"
    config.checkpoint.every_steps = 1000
    config.log.update(every_steps=50, examples_every_steps=10_000)
    config.update(
        {
            "model": {
                "variant": "vit_l16",
                "image_size": 224,
                "ffn": "mlp",
                "num_registers": 0,
                "layer_scale": None,
                "norm_epsilon": 1e-6,
                "drop_path": 0.0,
                "positions": "sincos",
                "pos_resize": "offset",
                "init": "xavier",
                "scan": True,
                "remat": "full",
                "attention": "plain",
            },
            "decoder": {"width": 512, "depth": 8, "num_heads": 16},
            "crop": base.crop((0.2, 1.0)),
            "objective": {"name": "mae", "mask_ratio": 0.75, "normalise_targets": True},
            "optim": {
                "base_learning_rate": 1.5e-4,
                "final_learning_rate": 0.0,
                "warmup_frac": 40 / 800,
                "weight_decay": 0.05,
                "betas": (0.9, 0.95),
                "first_moment_dtype": "param",
                "clip_norm": 0.0,
            },
        }
    )
    return config
