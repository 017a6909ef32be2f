"""ML-Decoder on a frozen backbone: learned queries for groups of findings, on the last block; 13 learning rates.

    python -m cxr_jax.train --config=configs/finetune/ml_decoder.py --workdir=runs/ml_decoder \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('Effusion', 'Infiltration', 'Atelectasis')"

`head.num_groups=0` is one query a class, below it classes share queries; `head.learn_queries=False` is the paper's.
After 100 of the 400 steps (--config.total_steps=100, 5 minutes on two shared CPU cores; decoder width 768 is made for
larger backbones), on configs/pretrain/small_mae.py after 500 steps, mean AUROC of the three on 198 test images: 0.62
[0.54, 0.70], the same on the random network 0.61 [0.55, 0.70], hand-made features 0.66 [0.59, 0.74].
"""

from ml_collections import ConfigDict

from configs.finetune import glori


def get_config():
    config = glori.get_config()
    config.head = ConfigDict(
        {
            "name": "ml_decoder",
            "blocks": 1,
            "num_groups": 0,
            "learn_queries": True,
            "decoder_width": 768,
            "num_heads": 8,
            "ffn_width": 2048,
            "dropout_rate": 0.1,
        }
    )
    return config
