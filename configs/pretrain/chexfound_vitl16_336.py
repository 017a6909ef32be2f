"""CheXFound at 336 px: stage two, from the teacher of `chexfound_vitl16.py`.

    python -m cxr_jax.train --config=configs/pretrain/chexfound_vitl16_336.py --workdir=runs/chexfound_vitl16_336 \\
        --config.init_from=runs/chexfound_vitl16 --config.data.path=data/cxr

Hardware: one node of 8 accelerators, as the authors had; time: not yet run. Result: not yet run.

Crops of 336 and 128 px, 96 images a step (12 on each of 8 devices, the group), 250,000 steps, 24 M images;
learning rate 2e-4 sqrt(96 / 1024) = 6.1e-5. All schedules start again, as released. Unlike the released code, which
draws new position embeddings and drops the teacher, this stage starts student and teacher from stage one's teacher
with its heads, positions resized by the model's rule from 14 x 14 to 21 x 21.
"""

from configs.pretrain import chexfound_vitl16


def get_config():
    return chexfound_vitl16.high_resolution(global_px=336, local_px=128, batch_size=96)
