"""Full fine-tuning of a masked autoencoder, as MAE's authors and CXRBase do: layer-wise decay, drop path, average pool.

    python -m cxr_jax.train --config=configs/finetune/mae_full.py --workdir=runs/mae_full_tb \\
        --config.init_from=runs/mae_vitl16 --config.data.path=data/cxr --config.data.targets="('Tuberculosis',)"
    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=runs/mae_full_tb_eval \\
        --config.init_from=runs/mae_full_tb

AdamW at 1e-3 x batch / 256 with 10 % of warm-up and a layer decay of 0.75, drop path 0.1 (the same in every block,
where MAE's grows with depth), mixup off. MAE's own values for ViT-L; CXRBase's are not known. Hardware: made for
accelerators. Result: not yet run.

With `--config=configs/finetune/mae_full.py:small` the same for a small backbone on two CPU cores, 32 images a step.
On configs/pretrain/small_mae.py after 500 steps with --config.data.where.source=shenzhen, 5 minutes, 148 test images:
tuberculosis 0.82 [0.74, 0.89], the same from a random network 0.80 [0.72, 0.87], hand-made features 0.93 [0.89, 0.97];
a linear probe on that backbone, frozen, has 0.92. 200 steps on 350 images are too few to pay for a whole network.
"""

from ml_collections import ConfigDict

from configs.finetune import glori


def get_config(size: str = "large"):
    config = glori.get_config()
    config.head = ConfigDict({"name": "pooled", "blocks": 1, "init_std": 2e-5})
    config.objective.update(backbone="full", drop_path=0.1, group_size=8)
    config.optim.update(learning_rates=(1e-3,), warmup_frac=0.1, weight_decay=0.05, layer_decay=0.75)
    if size == "small":
        config.total_steps = 200
        return config
    config.batch_size = 256
    config.total_steps = 5000
    config.objective.remat = "full"
    config.crop.scale = (0.2, 1.0)
    config.dtypes.compute = "bfloat16"
    config.checkpoint.every_steps = 500
    return config
