"""CheXFound's stage one for a pod: 4,096 images a step, as many images in all, so 18,555 steps.

    python -m cxr_jax.train --config=configs/pretrain/chexfound_vitl16_pod.py --workdir=runs/chexfound_vitl16_pod \\
        --config.data.path=data/cxr --coordinator_address=auto

Hardware: 128 or 256 chips (v5e:16x16, v6e:8x16); time: not yet run. Result: not yet run.

Why not 304: pods have 2^k chips, and 304 = 16 x 19 has only four factors of two. It can be shared by 1, 2, 4, 8 or 16
devices, so 256 chips would stand idle or hold a fraction of an image. 4,096 gives 16 images to each of 256 chips and 32
to each of 128.

What is kept when the batch grows from 304 to B = 4,096, and by which rule:

    images seen     76 M              steps = 76 M / B = 18,555
    learning rate   2e-4              x sqrt(B / 1024) = 4e-4 (1.09e-4 at 304)
    teacher         0.994 per step    0.994^(B / 304) = 0.922, the same forgetting per image
    warm-up, temperature, frozen prototypes    10 %, 30 %, 1 % of the steps, so the same number of images

`group_size` 16 is the share of one of 256 chips and half of that of one of 128, so masks, dropped rows and KoLeo
neighbours are the same on both; the reference draws within 38. 32 is legal on 128 chips and nearer to it.
Parameters are split over 16 chips (`mesh.fsdp`) and copied across the rest.
"""

from configs.pretrain import chexfound_vitl16


def at_batch_size(config, batch_size: int) -> None:
    """Set batch, steps and teacher momentum so that images seen and forgetting per image stay as they are."""
    images_seen, ratio = config.total_steps * config.batch_size, batch_size / config.batch_size
    start, end = config.objective.ema
    config.objective.ema = (start**ratio, end)
    config.batch_size, config.total_steps = batch_size, round(images_seen / batch_size)


def get_config():
    config = chexfound_vitl16.get_config()
    at_batch_size(config, 4_096)
    config.mesh.update(replica=-1, fsdp=16, tensor=1)
    config.objective.group_size = 16
    config.checkpoint.every_steps = 500
    config.log.every_steps = 10
    return config
