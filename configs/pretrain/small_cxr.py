"""CheXFound's losses on a small ViT (width 192, six blocks, 112 px), for a thousand radiographs on a CPU.

    python -m data_prep.build --reader=folder --input=DIR --output=data/cxr_small
    python -m cxr_jax.train --config=configs/pretrain/small_cxr.py --workdir=runs/small_cxr \\
        --config.data.path=data/cxr_small

Departures from the recipe, because a batch has 32 images and a run 500 steps: 256 prototypes, teacher temperature 0.04
throughout, teacher momentum from 0.98, LayerScale 1, KoLeo weight 0.05, milder crop scales, no drop path.

Measured on 977 training images of three sources (NIH ChestX-ray14, Shenzhen, a COVID-19 collection), two shared CPU
cores, 16 minutes. Loss 14.24 -> 11.83; iBOT cross-entropy 5.63 -> 4.27 nats, DINO 5.68 -> 5.45 (uniform is ln 256 =
5.55, which it left after about 250 steps); participation ratio of CLS tokens 1.9 -> 19, prototype use 0.8, teacher
entropy 5.26, so no collapse.

GLoRI (configs/finetune/small_glori.py, 200 steps) and a linear probe (configs/eval/linear.py) on the teacher, test
AUROC with 95 % patient-bootstrap intervals:

                                pretrained            random network        hand-made features
    GLoRI, tuberculosis (148)   0.80 [0.72, 0.87]     0.81 [0.73, 0.88]     0.93 [0.89, 0.97]
    GLoRI, sex on NIH (198)     0.51 [0.41, 0.61]     0.46 [0.36, 0.56]     0.87 [0.82, 0.92]
    linear, tuberculosis        0.90 [0.84, 0.95]     0.88 [0.82, 0.93]     0.93 [0.89, 0.97]
    linear, sex on NIH          0.52 [0.44, 0.60]     0.48 [0.40, 0.58]     0.87 [0.82, 0.92]

So: after 16,000 images it is not told apart from a random network, and reaches neither floor. This config
shows that the path works and that nothing collapses, not that it learns what a reader needs.

Also tried, 690 steps of twelve blocks with the settings that LightlyTrain chooses for small sets (softmax centring,
teacher temperature 0.02, 1,024 prototypes, iBOT weight 1, layer decay 0.9, base learning rate 4e-3, 8 local crops of
0.05-0.32): sex 0.56 [0.47, 0.65] by linear probe and 0.58 [0.49, 0.67] by neighbours (random 0.51, 0.49), view 0.95
(random 0.95), tuberculosis 0.86 [0.79, 0.92] (random 0.90): no better than a random network.

The same with Sinkhorn, and as many prototypes for DINO as a batch has global crops (64), does better, DINO's
cross-entropy leaving ln 64 = 4.16 for 3.9: sex 0.58 [0.49, 0.66], view 0.972 [0.944, 0.991], tuberculosis 0.90
[0.85, 0.95]; still not told apart from random. Its settings:

    --config.total_steps=690 --config.model.depth=12 --config.objective.group_size=32
    --config.heads.dino_head.num_prototypes=64 --config.objective.teacher_temperature="(0.02,0.02)"
    --config.objective.ema="(0.99,1.0)" --config.objective.ibot_weight=1.0 --config.objective.koleo_weight=0.1
    --config.optim.base_learning_rate=4e-3 --config.optim.weight_decay="(0.04,0.04)" --config.optim.layer_decay=0.9
    --config.crops.num_local=8 --config.crops.global_scale="(0.32,1.0)" --config.crops.local_scale="(0.05,0.32)"

With prototypes frozen and the rate rising for all 690 steps, as LightlyTrain's defaults have it in so short a run
(softmax centring, 1,024 prototypes, momentum from 0.992, weight decay to 0.4), features had a far higher rank (48 at
step 240) and iBOT's cross-entropy fell to 5.0 nats of ln 1024 = 6.9; sex 0.63 [0.56, 0.70] after 200 steps, 0.54
[0.44, 0.64] after 400; it was stopped at 511.

Shorter ones of 11,040 images, sex by linear probe; all with model.depth=12, objective.ema="(0.99,1.0)",
objective.ibot_weight=1.0, optim.weight_decay="(0.04,0.04)", and

    A: total_steps=345, group_size=32, base_learning_rate=4e-3, crops of 0.32-1.0 and 0.05-0.32, model.layer_scale=1e-5
    B: as A with LayerScale 1 and large crops: 0.6-1.0 and 0.2-0.6
    C: crops of B; batch_size=16, total_steps=690, base_learning_rate=8e-3, teacher temperature 0.02, 128 prototypes for
       DINO, koleo_weight=0.1

    A   0.61 [0.51, 0.70]   random 0.56 [0.47, 0.64]   DINO's term stays uniform
    B   0.56 [0.47, 0.65]   random 0.51 [0.43, 0.60]
    C   0.53 [0.45, 0.61]   random 0.51 [0.43, 0.60]   DINO 4.95 -> 4.60 nats, iBOT 5.6 -> 4.1

None is told apart from its random network, nor from another.

Again 11,040 images, of NIH alone (data.where.source=nih-chestxray14, 459 images), with positions that a random network
knows from its first step (model.positions=sincos); depth, momentum, iBOT weight and weight decay as above, teacher
temperature 0.02, 64 prototypes for DINO, koleo_weight=0.1; random 0.57 [0.48, 0.66], view 0.95 [0.91, 0.97]:

    D: total_steps=345, group_size=32, base_learning_rate=4e-3, crops of 0.32-1.0 and 0.05-0.32
    E: batch_size=16, total_steps=690, base_learning_rate=2.5e-3, crops of 0.5-1.0 and 0.2-0.6, no flip, no solarising

    D   0.60 [0.52, 0.68]   view 0.94 [0.90, 0.97]
    E   0.63 [0.54, 0.72]   view 0.95 [0.92, 0.98]

On the same images masked autoencoding learns more (configs/pretrain/small_mae.py).
"""

from configs import base


def get_config():
    config = base.pretraining()
    config.update(
        {
            "model": {
                "variant": "vit_ti16",
                "depth": 6,
                "image_size": 112,
                "ffn": "swiglu",
                "num_registers": 4,
                "layer_scale": 1.0,
                "norm_epsilon": 1e-6,
                "drop_path": 0.0,
                "positions": "learned",
                "pos_resize": "offset",
                "scan": True,
                "remat": "none",
                "attention": "plain",
            },
            "heads": {
                "dino_head": {"hidden": 512, "bottleneck": 256, "num_prototypes": 256},
                "ibot_head": {"hidden": 512, "bottleneck": 256, "num_prototypes": 256},
            },
            "crops": {
                "global_size": 112,
                "local_size": 48,
                "num_local": 4,
                "global_scale": (0.4, 1.0),
                "local_scale": (0.1, 0.4),
                "aspect": (3 / 4, 4 / 3),
                "flip_prob": 0.5,
                "jitter_prob": 0.8,
                "brightness": 0.4,
                "contrast": 0.4,
                "blur_probs": "as_documented",
                "blur_sigma": (0.1, 2.0),
                "solarise_prob": 0.2,
                "extra": {"gamma": 0.0, "rotate_deg": 0.0},
            },
            "objective": {
                "name": "self_distillation",
                "group_size": 16,
                "mask_ratio": (0.1, 0.5),
                "dino_weight": 1.0,
                "ibot_weight": 3.0,
                "koleo_weight": 0.05,
                "student_temperature": 0.1,
                "teacher_temperature": (0.04, 0.04),
                "teacher_temperature_warmup_frac": 0.3,
                "centring": "sinkhorn",
                "centre_momentum": 0.9,
                "shared_heads": False,
                "prototype_chunks": 1,
                "koleo_scope": "group",
                "koleo_start_spread": 0.0,
                "gram_weight": 0.0,
                "gram_refresh_every_steps": 0,
                "gram_negatives": "keep",
                "regularised_blocks": (),
                "variance_weight": 0.0,
                "covariance_weight": 0.0,
                "ema": (0.98, 1.0),
                "teacher_dtype": "param",
            },
            "optim": {
                "base_learning_rate": 3e-3,
                "final_learning_rate": 1e-6,
                "schedule": "cosine",
                "warmup_frac": 0.1,
                "cooldown_frac": 0.2,
                "weight_decay": (0.04, 0.2),
                "betas": (0.9, 0.999),
                "first_moment_dtype": "param",
                "clip_norm": 3.0,
                "patch_embed_lr_mult": 0.2,
                "layer_decay": 1.0,
                "frozen_prototypes_frac": 0.01,
                "frozen_backbone_frac": 0.0,
            },
        }
    )
    return config
