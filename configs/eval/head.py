"""Score a fine-tuned run with its own head: the learning rate is chosen on `val`, the scores are of `test`.

    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=runs/eval --config.init_from=runs/glori_tb \\
        --config.baselines.runs="('runs/glori_tb_random',)"

Data, targets and geometry are those of the run where this config says nothing. Seconds to minutes on a CPU.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "protocol": "head",
            "init_from": "",
            "step": -1,
            "network": "teacher",
            "batch_size": 32,
            "data": {
                "path": "",
                "train_split": "train",
                "select_split": "val",
                "split": "test",
                "where": {"source": "", "view": "", "sex": ""},
                "only_images": "",
                "train_path": "",
                "train_where": {"source": "", "view": "", "sex": ""},
                "train_only_images": "",
                "targets": (),
                "cache_dir": "",
            },
            "study": "none",
            "test_time_flip": False,
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "probe": {"blocks": 1, "tokens": "cls", "k": 20},
            "baselines": {"runs": (), "random": False, "floor": True},
            "attention_images": 6,
            "bootstrap": {"resamples": 1000, "confidence": 0.95, "seed": 0},
            "metrics": {"specificity": 0.9, "calibration_bins": 15},
            "long_tail": {"head_above": 1000, "tail_below": 100},
            "subgroups": {
                "fields": ("source", "view", "sex", "age"),
                "age_bins": (18.0, 40.0, 60.0, 80.0),
                "min_positive_patients": 20,
            },
            "audits": {
                "shortcuts": True,
                "source": True,
                "duplicates": True,
                "labels": True,
                "warn_auroc": 0.7,
                "duplicate_correlation": 0.98,
                "neighbours": 20,
            },
        }
    )
