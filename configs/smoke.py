"""The smallest whole pretraining run: DINO + iBOT + KoLeo on a two-block ViT at 64 px.

    python -m cxr_jax.train --config=configs/smoke.py --workdir=runs/smoke --config.data.path=data/phantom

Hardware: any CPU. Purpose: to see that everything works; nothing useful is learned.
"""

from configs.pretrain import small_cxr


def get_config():
    config = small_cxr.get_config()
    config.batch_size = 16
    config.total_steps = 40
    config.objective.group_size = 2
    config.model.update(image_size=64, depth=2, width=64, num_heads=2)
    config.crops.update(global_size=64, local_size=32, num_local=2)
    for head in config.heads.values():
        head.update(hidden=128, bottleneck=32, num_prototypes=256)
    config.checkpoint.every_steps = 20
    config.log.every_steps = 1
    return config
