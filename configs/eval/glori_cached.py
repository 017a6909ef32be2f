"""GLoRI as published on cached features: 13 learning rates at once on a frozen backbone that sees every image once.

    python -m cxr_jax.evaluate --config=configs/eval/glori_cached.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/shenzhen --config.data.targets="('Tuberculosis',)"

The patch tokens of a ViT-L/16 at 224 px take 3.2 MB an image: 1,200 images fit `features.max_gb`. Beyond that, train
with configs/finetune/glori.py, which keeps no features, and score with configs/eval/head.py. configs/finetune also
draws crops and flips, which cached features cannot have.

Result: not yet run at this size; configs/eval/small_glori_cached.py was.
"""

from ml_collections import ConfigDict

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.head = ConfigDict(
        {
            "name": "glori",
            "blocks": 4,
            "decoder_width": 768,
            "num_heads": 8,
            "ffn_width": 2048,
            "dropout_rate": 0.1,
            "concat_cls": True,
        }
    )
    config.features.tokens = ("patches",)
    config.training.weight_decays = (1e-4,)
    config.training.seeds = (0,)
    return config
