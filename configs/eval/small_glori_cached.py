"""GLoRI on cached features, sized for a small backbone: decoder width 192, four learning rates.

    python -m cxr_jax.evaluate --config=configs/eval/small_glori_cached.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=shenzhen --config.data.targets="('Tuberculosis',)"
"""

from configs.eval import glori_cached


def get_config():
    config = glori_cached.get_config()
    config.head.update(decoder_width=192, num_heads=8, ffn_width=512)
    config.training.update(learning_rates=(1e-4, 3e-4, 1e-3, 3e-3), steps=200)
    return config
