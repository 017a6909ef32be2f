"""Score the masks of a fine-tuned run: Dice and IoU of `test`, the learning rate chosen on `val`.

    python -m cxr_jax.evaluate --config=configs/eval/segmentation.py --workdir=runs/lungs_eval \\
        --config.init_from=runs/lungs --config.baselines.runs="('runs/lungs_random',)"

Beside it stand the same head on other runs' backbones, such as a random one, and a floor that learns nothing: where
training masks lie, and that lungs are dark. `attention_images` is how many images the report shows with outlines; 0
shows none. Data and geometry are those of the run where this config says nothing. A minute on a CPU.
"""

from configs.eval import head


def get_config():
    config = head.get_config()
    config.protocol = "segmentation"
    return config
