"""GLoRI for the five findings of the phantom, on the backbone of configs/demo.py: the second half of `make demo`.

    python -m cxr_jax.train --config=configs/finetune/demo_glori.py --workdir=demo/glori \\
        --config.init_from=demo/pretrain --config.data.path=demo/data
"""

from configs.finetune import small_glori


def get_config():
    config = small_glori.get_config()
    config.total_steps = 400
    config.data.targets = ("Cardiomegaly", "Effusion", "Nodule", "Consolidation", "Pneumothorax")
    config.head.update(decoder_width=96, num_heads=4, ffn_width=192)
    return config
