"""Attentive probe on a frozen backbone: one learned query reads the last block's patches, four learning rates at once.

    python -m cxr_jax.train --config=configs/finetune/attentive.py --workdir=runs/attentive_sex \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

Sized for a small backbone; for ViT-L take head.decoder_width=1024, num_heads=16. On configs/pretrain/small_mae.py after
500 steps, two shared CPU cores, 2 minutes, configs/eval/head.py on 198 test images: sex 0.66 [0.55, 0.75], the same
probe on the random network 0.51 [0.41, 0.61], hand-made features 0.87 [0.82, 0.92].
"""

from ml_collections import ConfigDict

from configs.finetune import small_glori


def get_config():
    config = small_glori.get_config()
    config.head = ConfigDict({"name": "attentive", "blocks": 1, "decoder_width": 192, "num_heads": 8})
    return config
