"""A few minutes of DINO + iBOT + KoLeo on phantom radiographs: what `make demo` pretrains.

    python -m cxr_jax.train --config=configs/demo.py --workdir=demo/pretrain --config.data.path=demo/data

Hardware: two CPU cores. Purpose: the whole path at a size that finishes; phantoms teach nothing about patients.
"""

from configs.pretrain import small_cxr


def get_config():
    config = small_cxr.get_config()
    config.batch_size = 32
    config.total_steps = 120
    config.model.update(image_size=96, depth=4, width=96, num_heads=3)
    config.crops.update(global_size=96, local_size=48, num_local=4)
    for head in config.heads.values():
        head.update(hidden=256, bottleneck=64, num_prototypes=512)
    config.checkpoint.every_steps = 60
    config.log.every_steps = 5
    return config
