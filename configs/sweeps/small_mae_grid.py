"""Learning rate x mask ratio of masked autoencoding: six short runs, each with a linear probe behind it.

    python -m launch.sweep   --sweep=configs/sweeps/small_mae_grid.py --config.data.path=data/cxr_small
    python -m launch.collect --runs=runs/small_mae_grid

configs/pretrain/small_mae.py at 64 px and 60 steps: it shows how a sweep is run and read. Losses of different mask
ratios are not comparable (other patches are hidden); the probe is. Measured on 977 training images, AUROC of AP views
among NIH's, with patient-level 95 % intervals:

    base_learning_rate  mask_ratio  last loss  view
    0.001               0.5         1.041      0.97 [0.94, 0.99]
    0.001               0.75        1.052      0.97 [0.94, 0.99]
    0.01                0.5         0.930      0.95 [0.92, 0.98]
    0.01                0.75        0.941      0.94 [0.91, 0.97]
    0.1                 0.5         0.932      0.87 [0.80, 0.92]
    0.1                 0.75        0.945      0.87 [0.82, 0.91]

So within 60 steps a lower loss is no better network: 0.1 loses what a random one shows. Hardware: two CPU cores, on
which a run takes a minute or two and its probe as long.
"""

from configs.sweeps import Stage, Sweep, product, vary


def get_sweep():
    return Sweep(
        config="configs/pretrain/small_mae.py",
        fixed={
            "total_steps": 60,
            "model.image_size": 64,
            "decoder.width": 64,
            "decoder.depth": 2,
            "log.every_steps": 2,
            "checkpoint.every_steps": 20,
        },
        runs=product(
            vary("optim.base_learning_rate", 1e-3, 1e-2, 1e-1),
            vary("objective.mask_ratio", 0.5, 0.75),
        ),
        then={
            "view": Stage(
                "configs/eval/linear.py",
                {"data.where.source": "nih-chestxray14", "data.targets": ("view:AP",)},
            )
        },
    )
