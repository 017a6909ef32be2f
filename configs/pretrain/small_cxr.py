"""CheXFound's recipe on a small ViT, for a few thousand radiographs on a CPU.

    python -m cxr_jax.train --config=configs/pretrain/small_cxr.py --workdir=runs/small_cxr \\
        --config.data.path=data/cxr_small

Hardware, time and result: not yet run.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 32,
            "total_steps": 500,
            "init_from": "",
            "data": {
                "path": "",
                "split": "train",
                "where": {"source": "", "view": "", "sex": ""},
                "targets": (),
                "threads": 2,
                "prefetch": 4,
            },
            "geometry": {"fit": "pad", "image_size": 0},
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "dtypes": {"param": "float32", "compute": "float32", "reduce": "float32"},
            "model": {
                "variant": "vit_ti16",
                "depth": 6,
                "image_size": 112,
                "ffn": "swiglu",
                "num_registers": 4,
                "layer_scale": 1.0,
                "drop_path": 0.0,
                "pos_resize": "offset",
                "scan": True,
                "remat": "none",
            },
            "heads": {
                "dino_head": {"hidden": 512, "bottleneck": 256, "num_prototypes": 256},
                "ibot_head": {"hidden": 512, "bottleneck": 256, "num_prototypes": 256},
            },
            "crops": {
                "global_size": 112,
                "local_size": 48,
                "num_local": 4,
                "global_scale": (0.4, 1.0),
                "local_scale": (0.1, 0.4),
                "blur_probs": "as_documented",
            },
            "objective": {
                "name": "self_distillation",
                "group_size": 16,
                "mask_ratio": (0.1, 0.5),
                "dino_weight": 1.0,
                "ibot_weight": 3.0,
                "koleo_weight": 0.05,
                "student_temperature": 0.1,
                "teacher_temperature": (0.04, 0.04),
                "teacher_temperature_warmup_frac": 0.3,
                "centring": "sinkhorn",
                "centre_momentum": 0.9,
                "ema": (0.98, 1.0),
            },
            "optim": {
                "base_learning_rate": 3e-3,
                "final_learning_rate": 1e-6,
                "warmup_frac": 0.1,
                "weight_decay": (0.04, 0.2),
                "betas": (0.9, 0.999),
                "clip_norm": 3.0,
                "patch_embed_lr_mult": 0.2,
                "layer_decay": 1.0,
                "frozen_prototypes_frac": 0.01,
            },
            "checkpoint": {"every_steps": 100, "keep": 3},
            "log": {"every_steps": 10, "tensorboard": True},
        }
    )
