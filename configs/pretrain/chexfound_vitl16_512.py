"""CheXFound at 512 px: stage two, from the teacher of `chexfound_vitl16.py`.

    python -m cxr_jax.train --config=configs/pretrain/chexfound_vitl16_512.py --workdir=runs/chexfound_vitl16_512 \\
        --config.init_from=runs/chexfound_vitl16 --config.data.path=data/cxr

Hardware: one node of 8 accelerators, as the authors had; time: not yet run. Result: not yet run.

Crops of 512 and 144 px, 80 images a step (10 on each of 8 devices, the group), 250,000 steps, 20 M images;
learning rate 2e-4 sqrt(80 / 1024) = 5.6e-5. All schedules start again, as released. Unlike the released code, which
draws new position embeddings and drops the teacher, this stage starts student and teacher from stage one's teacher
with its heads, positions resized by the model's rule from 14 x 14 to 32 x 32.

The released configuration starts this stage from the 224 px run; the authors' log shows one that came from 448 px. For
that chain add --config.init_from=runs/chexfound_vitl16_448.
"""

from configs.pretrain import chexfound_vitl16


def get_config():
    return chexfound_vitl16.high_resolution(global_px=512, local_px=144, batch_size=80)
