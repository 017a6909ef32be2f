"""GLoRI sized for a small backbone: decoder width 192, four learning rates.

    python -m cxr_jax.train --config=configs/finetune/small_glori.py --workdir=runs/glori_tb \\
        --config.init_from=runs/small_dino --config.data.path=data/cxr_small \\
        --config.data.where.source=shenzhen --config.data.targets="('Tuberculosis',)"

Hardware, time and result: see configs/pretrain/small_dino.py, whose backbone it reads.
"""

from configs.finetune import glori


def get_config():
    config = glori.get_config()
    config.total_steps = 200
    config.head.update(decoder_width=192, num_heads=8, ffn_width=512)
    config.optim.learning_rates = (1e-4, 3e-4, 1e-3, 3e-3)
    return config
