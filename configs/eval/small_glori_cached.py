"""GLoRI on cached features, sized for a small backbone: decoder width 192, four learning rates.

    python -m cxr_jax.evaluate --config=configs/eval/small_glori_cached.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=shenzhen --config.data.targets="('Tuberculosis',)"

Measured on two shared CPU cores, eight to ten minutes a task with its random network while others used them too, on
the backbone of configs/pretrain/small_mae.py after 2,000 steps; AUROC on test images with 95 % intervals over patients.
The last column is the paired difference to the same head on the random network; hand-made as in linear_cached.py.

                                pretrained           random network       hand-made            above random
    tuberculosis, Shenzhen      0.91 [0.85, 0.95]    0.87 [0.81, 0.93]    0.93 [0.89, 0.97]    0.04 [-0.00, 0.07]
    sex, NIH                    0.68 [0.58, 0.77]    0.60 [0.50, 0.69]    0.87 [0.82, 0.92]    0.08 [-0.02, 0.18]
    mean of four findings (*)   0.69 [0.62, 0.76]    0.62 [0.54, 0.70]    0.69 [0.61, 0.77]    0.07 [-0.02, 0.16]
      Edema                     0.83 [0.71, 0.92]    0.62 [0.43, 0.78]    0.87 [0.79, 0.94]

(*) Infiltration, Atelectasis, Effusion, Edema on NIH, among pneumonia images alone, as in linear_cached.py.
None is told apart from the linear head of linear_cached.py, of a minute: paired differences 0.00 [-0.03, 0.02],
-0.04 [-0.10, 0.02] and -0.01 [-0.05, 0.03]. View and pneumonia: not yet run.
"""

from configs.eval import glori_cached


def get_config():
    config = glori_cached.get_config()
    config.head.update(decoder_width=192, num_heads=8, ffn_width=512)
    config.training.update(learning_rates=(1e-4, 3e-4, 1e-3, 3e-3), steps=200)
    return config
