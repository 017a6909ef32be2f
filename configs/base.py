"""What every training config has: the sections that are no science, with values for two CPU cores.

`training()` is for heads and pretrainings, `pretraining()` adds what only the latter have; `crop()` is the section of
those that see one crop an image. A config starts from one of them and names what it sets; `tests/golden` holds every
config written out whole.
"""

from ml_collections import ConfigDict


def training() -> ConfigDict:
    """Data, devices, checkpoints, logs."""
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 32,
            "accumulate_steps": 1,
            "total_steps": 500,
            "init_from": "",
            "init_network": "teacher",
            "allow_change": (),
            "data": {
                "path": "",
                "split": "train",
                "where": {"source": "", "view": "", "sex": ""},
                "targets": (),
                "threads": 2,
                "prefetch": 4,
                "weights": (),
                "workers": 0,
                "prefetch_to_device": 1,
                "cache_dir": "",
                "cache_decoded_mb": 0,
            },
            "geometry": {"fit": "pad", "image_size": 0},
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "dtypes": {"param": "float32", "compute": "float32", "reduce": "float32"},
            "checkpoint": {
                "every_steps": 100,
                "every_secs": 0.0,
                "keep": 3,
                "keep_every_steps": 0,
                "keep_steps": (),
                "best_metric": "",
                "best_mode": "max",
                "keep_best": 1,
                "teacher_every_steps": 0,
                # Trained float32 shrinks by 7 to 8 % only, and takes longer to write and to read.
                "compress": False,
            },
            "numerics": {"on_nonfinite": "stop", "max_rollbacks": 3},
            "log": {
                "every_steps": 10,
                "record_ids": False,
                "tensorboard": True,
                "trackers": (),
                "project": "cxr_jax",
                "stall_secs": 1800.0,
                "on_collapse": "warn",
                "collapse_after_frac": 0.2,
                "collapse_patience": 5,
            },
            "profile": {"first_step": 10, "num_steps": 0},
        }
    )


def crop(scale: tuple[float, float], *, jitter_prob: float = 0.0, rotate_deg: float = 0.0) -> dict:
    """One crop of every image, of `scale` of its area, flipped half of the time; what else can be done to it is off."""
    return {
        "scale": scale,
        "flip_prob": 0.5,
        "aspect": (3 / 4, 4 / 3),
        "jitter_prob": jitter_prob,
        "brightness": 0.4,
        "contrast": 0.4,
        "blur_prob": 0.0,
        "blur_sigma": (0.1, 2.0),
        "solarise_prob": 0.0,
        "extra": {"gamma": 0.0, "rotate_deg": rotate_deg},
    }


def pretraining() -> ConfigDict:
    """`training()`, how to start from another run, and the online probe."""
    config = training()
    config.update({"init_parts": "networks", "init_step": -1, "schedules_from": "restart"})
    config.probe = ConfigDict(
        {
            "every_steps": 0,
            "path": "",
            "train_split": "train",
            "test_split": "val",
            "where": {"source": "", "view": "", "sex": ""},
            "targets": (),
            "k": 20,
            "max_images": 2000,
            "resamples": 200,
        }
    )
    return config
