"""GLoRI with low-rank changes of the backbone's attention: rank 16 on qkv and proj, as CheXFound's option.

    python -m cxr_jax.train --config=configs/finetune/lora.py --workdir=runs/lora_sex \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

Head and factors are kept, the backbone stays that of the run it came from; an evaluation multiplies the factors in.
Sized for a small backbone, as small_glori.py. On configs/pretrain/small_mae.py after 500 steps, two shared CPU cores,
4 minutes, configs/eval/head.py on 198 test images: sex 0.68 [0.59, 0.77], the same on the random network 0.52
[0.43, 0.63], hand-made features 0.87 [0.82, 0.92].
"""

from configs.finetune import small_glori


def get_config():
    config = small_glori.get_config()
    config.objective.backbone = "lora"
    config.optim.learning_rates = (1e-3,)
    return config
