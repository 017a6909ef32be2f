"""ML-Decoder on a frozen backbone: learned queries for groups of findings, on the last block; 13 learning rates.

    python -m cxr_jax.train --config=configs/finetune/ml_decoder.py --workdir=runs/ml_decoder \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('Effusion', 'Infiltration', 'Atelectasis')"

`head.num_groups=0` is one query a class, below it classes share queries; `head.learn_queries=False` is the paper's.
Result: not yet run.
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
