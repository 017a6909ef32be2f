"""The peer of the input benchmark: DINOv2's augmentation in torchvision, one process, one thread.

    PYTHON_WITH_TORCHVISION tests/benchmarks/torchvision_dinov2.py JPEG_FOLDER

In: on stdin, lines "GLOBAL_PX LOCAL_PX IMAGES". Out: on stdout, a line of JSON for each, `{"images", "cpu_secs",
"wall_secs"}`. As published: decode to RGB with Pillow, then for each of two global and eight local crops a random
resized crop (bicubic), flip, colour jitter, grayscale, blur, for the second global crop solarise, and normalisation.
Blur probabilities are those that the released code runs with (0.0, 0.9, 0.5).
"""

import io
import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms as t

BICUBIC = t.InterpolationMode.BICUBIC


def views(global_px: int, local_px: int) -> list[t.Compose]:
    """Ten transforms, each of an RGB picture to a tensor `[3, S, S]`."""
    colour = [
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        t.RandomGrayscale(p=0.2),
    ]
    last = [t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

    def blur(prob):
        return t.RandomApply([t.GaussianBlur(9, sigma=(0.1, 2.0))], p=prob)

    def crop(side, scale):
        return [t.RandomResizedCrop(side, scale=scale, interpolation=BICUBIC), t.RandomHorizontalFlip(0.5)]

    first = t.Compose([*crop(global_px, (0.32, 1.0)), *colour, blur(0.0), *last])
    second = t.Compose([*crop(global_px, (0.32, 1.0)), *colour, blur(0.9), t.RandomSolarize(128, p=0.2), *last])
    local = t.Compose([*crop(local_px, (0.05, 0.32)), *colour, blur(0.5), *last])
    return [first, second, *[local] * 8]


def main() -> None:
    """Answer one line after the other."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = [file.read_bytes() for file in sorted(Path(sys.argv[1]).rglob("*.jpg"))]
    done = 0
    for line in sys.stdin:
        global_px, local_px, images = map(int, line.split())
        transforms = views(global_px, local_px)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(images):
            picture = Image.open(io.BytesIO(files[done % len(files)])).convert("RGB")
            crops = [transform(picture) for transform in transforms]
            assert crops[0].shape == (3, global_px, global_px)
            done += 1
        spent = {"cpu_secs": time.process_time() - cpu, "wall_secs": time.perf_counter() - wall}
        print(json.dumps({"images": images, **spent}), flush=True)


if __name__ == "__main__":
    main()
