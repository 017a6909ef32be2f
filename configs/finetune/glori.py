"""GLoRI on a frozen backbone: 13 learning rates trained at once.

    python -m cxr_jax.train --config=configs/finetune/glori.py --workdir=runs/glori_tb \\
        --config.init_from=runs/small_dino --config.data.path=data/cxr_small \\
        --config.data.where.source=shenzhen --config.data.targets="('Tuberculosis',)"
    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=runs/glori_tb_eval \\
        --config.init_from=runs/glori_tb

Hardware, time and result: see configs/pretrain/small_dino.py, whose backbone it reads.
"""

from configs import base


def get_config():
    config = base.training()
    config.total_steps = 400
    config.checkpoint.keep = 2
    config.update(
        {
            "objective": {
                "name": "supervised",
                "backbone": "frozen",
                "drop_path": 0.0,
                "group_size": 1,
                "remat": "none",
                "mixup_alpha": 0.0,
            },
            "head": {
                "name": "glori",
                "blocks": 4,
                "decoder_width": 768,
                "num_heads": 8,
                "ffn_width": 2048,
                "dropout_rate": 0.1,
                "concat_cls": True,
                "adaptive_temperature": False,
                "pyramid": (),
            },
            # CheXFound adds the asymmetric loss by terms=("bce", "asymmetric"); the other keys are idle without their
            # term.
            "label_loss": {
                "terms": ("bce",),
                "asymmetric_gamma_positive": 1.0,
                "asymmetric_gamma_negative": 4.0,
                "asymmetric_clip": 0.05,
                "focal_gamma": 2.0,
                "focal_alpha": 0.25,
                "ldam_margin": 0.5,
                "ldam_scale": 1.0,
                "balance_beta": 0.0,
                "balance_from_frac": 0.0,
                "logit_adjustment": 0.0,
            },
            "lora": {"rank": 16, "alpha": 16.0, "kernels": ("qkv", "proj")},
            "crop": base.crop((0.75, 1.0)),
            "optim": {
                "learning_rates": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
                "select_from": "",
                "warmup_frac": 0.0,
                "weight_decay": 1e-4,
                "layer_decay": 1.0,
            },
        }
    )
    return config
