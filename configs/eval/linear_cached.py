"""The linear head of DINOv2 and CheXFound on cached features: CLS of the last four blocks and the last mean patch.

    python -m cxr_jax.evaluate --config=configs/eval/linear_cached.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

13 learning rates and 2 weight decays are trained at once; the selection split chooses. Images are read once a backbone,
in the evaluation geometry, without augmentation. `--config.features.cache=DIR` keeps the features for the next head.

Measured on two shared CPU cores, 38 to 90 s a task with its three columns, on the backbone of configs/pretrain/
small_mae.py after 2,000 steps; AUROC on test images with 95 % intervals over patients, seed 0. The last column is the
paired difference to the same head on the random network.

                                pretrained           random network       hand-made            above random
    tuberculosis, Shenzhen      0.91 [0.86, 0.95]    0.90 [0.85, 0.95]    0.93 [0.89, 0.97]    0.01 [-0.03, 0.04]
    view, NIH                   0.97 [0.94, 0.99]    0.94 [0.91, 0.97]    0.99 [0.99, 1.00]    0.02 [-0.01, 0.05]
    sex, NIH                    0.72 [0.63, 0.81]    0.61 [0.53, 0.69]    0.87 [0.82, 0.92]    0.11 [0.01, 0.20]
    pneumonia, NIH (*)          0.66 [0.53, 0.78]    0.53 [0.41, 0.66]    0.64 [0.52, 0.74]    0.13 [-0.01, 0.26]
    mean of four findings (**)  0.70 [0.63, 0.77]    0.60 [0.52, 0.68]    0.69 [0.61, 0.77]    0.10 [0.03, 0.18]
      Infiltration              0.66 [0.57, 0.77]    0.61 [0.49, 0.72]    0.67 [0.57, 0.77]
      Atelectasis               0.66 [0.53, 0.81]    0.65 [0.50, 0.80]    0.65 [0.51, 0.84]
      Effusion (18 positive)    0.70 [0.55, 0.84]    0.58 [0.43, 0.70]    0.56 [0.38, 0.72]
      Edema                     0.77 [0.63, 0.89]    0.56 [0.38, 0.72]    0.87 [0.79, 0.94]

(*) on the 109 test images whose files are no larger than those without a finding: `data.only_images` names them. The
other images can be told by the size of their files.
(**) among pneumonia images alone, in training too (`data.train_only_images`), for the same reason.

Masked autoencoding: sex and the four findings are above the random network; nothing is above the hand-made features.
Three seeds of initial weights and order differ by 0.001 to 0.007 (standard deviation), on sex by 0.044: there 87
selection images choose.
"""

from configs.eval import head


def get_config():
    config = head.get_config()
    config.protocol = "cached_head"
    config.baselines.random = True
    config.update(
        {
            "head": {"name": "linear", "blocks": 4, "mean_patch": True},
            "features": {"tokens": ("mean_patch",), "cache": "", "max_gb": 4.0},
            "training": {
                "learning_rates": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
                "weight_decays": (1e-4, 1.0),
                "steps": 400,
                "batch_size": 32,
                "warmup_frac": 0.0,
                "seeds": (0, 1, 2),
            },
        }
    )
    return config
