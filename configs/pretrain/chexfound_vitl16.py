"""CheXFound, stage one: ViT-L/16 with four registers, DINO + iBOT + KoLeo at 224 px, every number as released.

    python -m data_prep.build --reader=folder --input=DIR --output=data/cxr
    python -m cxr_jax.train --config=configs/pretrain/chexfound_vitl16.py --workdir=runs/chexfound_vitl16 \\
        --config.data.path=data/cxr

Hardware: one node of 8 accelerators, as the authors had; time: not yet run. Result: not yet run.

Numbers of arXiv 2502.05142 and its released code: 304 images a step, 250,000 steps, 76 M images. Learning rate
2e-4 sqrt(304 / 1024) = 1.09e-4, warm-up 25,000 steps from 0, cosine to 1e-6; weight decay 0.04 -> 0.2 and teacher
momentum 0.994 -> 1 by cosines over the run; teacher temperature 0.04 -> 0.07 over 75,000 steps; prototypes frozen for
2,500. Backbone 303.3 M parameters (303.8 M with the reference's three input channels for our grey one), DINO head
57.5 M, iBOT head 40.5 M.

Mesh: `group_size` 38 is one GPU's images in the reference, within which masks, dropped rows and KoLeo neighbours are
drawn. It divides the share of each device on 1, 2, 4 or 8 data-parallel devices (304, 152, 76, 38 images) and on no
other number: 304 = 8 x 38. For more devices see `chexfound_vitl16_pod.py`.

Where paper and released code part, the code is followed, by name: `blur_probs` is `as_released` (0.0 / 0.9 / 0.5; the
documented 1.0 / 0.1 / 0.5 is `as_documented`). bfloat16 computation stands for the released float16, parameters and
optimiser are float32. `remat` "full" trades a third more computation for memory; 80 GB devices may do without.

Higher resolution follows in `chexfound_vitl16_{336,448,512}.py`, which start from this run's teacher.
"""

from configs.pretrain import small_cxr


def get_config():
    config = small_cxr.get_config()
    config.batch_size = 304
    config.total_steps = 250_000
    config.data.update(threads=32, prefetch=4)
    config.dtypes.update(param="float32", compute="bfloat16", reduce="float32")
    config.model.update(
        variant="vit_l16",
        image_size=224,
        ffn="swiglu",
        num_registers=4,
        layer_scale=1e-5,
        drop_path=0.4,
        positions="learned",
        pos_resize="offset",
        scan=True,
        remat="full",
    )
    del config.model.depth
    config.heads.dino_head.update(hidden=2048, bottleneck=384, num_prototypes=131_072)
    config.heads.ibot_head.update(hidden=2048, bottleneck=256, num_prototypes=131_072)
    config.crops.update(
        global_size=224,
        local_size=96,
        num_local=8,
        global_scale=(0.32, 1.0),
        local_scale=(0.05, 0.32),
        aspect=(3 / 4, 4 / 3),
        flip_prob=0.5,
        jitter_prob=0.8,
        brightness=0.4,
        contrast=0.4,
        blur_probs="as_released",
        blur_sigma=(0.1, 2.0),
        solarise_prob=0.2,
    )
    config.objective.update(
        group_size=38,
        mask_ratio=(0.1, 0.5),
        dino_weight=1.0,
        ibot_weight=3.0,
        koleo_weight=0.1,
        student_temperature=0.1,
        teacher_temperature=(0.04, 0.07),
        teacher_temperature_warmup_frac=0.3,
        centring="sinkhorn",
        centre_momentum=0.9,
        prototype_chunks=8,
        koleo_scope="group",
        ema=(0.994, 1.0),
    )
    config.optim.update(
        base_learning_rate=2e-4,
        final_learning_rate=1e-6,
        schedule="cosine",
        warmup_frac=0.1,
        weight_decay=(0.04, 0.2),
        betas=(0.9, 0.999),
        clip_norm=3.0,
        patch_embed_lr_mult=0.2,
        layer_decay=1.0,
        frozen_prototypes_frac=0.01,
        frozen_backbone_frac=0.0,
    )
    config.checkpoint.update(every_steps=2_500, keep=3)
    config.log.update(every_steps=50, tensorboard=True)
    return config


def high_resolution(*, global_px: int, local_px: int, batch_size: int):
    """A later stage: the same recipe on larger crops, from the teacher of stage one, schedules restarted.

    The reference trains each stage on 8 GPUs; `group_size` is the share of one of them.
    """
    config = get_config()
    config.batch_size = batch_size
    config.objective.group_size = batch_size // 8
    config.model.image_size = global_px
    config.crops.update(global_size=global_px, local_size=local_px)
    config.update(init_from="runs/chexfound_vitl16", init_network="teacher", init_parts="networks")
    return config
