"""A binary outcome of one's own, such as death within a year: any column of labels.csv.

    python -m data_prep.build --reader=folder --input=DIR --output=data/mine
    python -m cxr_jax.evaluate --config=configs/eval/protocols/outcome.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/mine \\
        --config.data.targets="('Mortality',)"

`labels.csv` has a column `Mortality`: 1 died within the time, 0 known to live at its end, empty where follow-up ended
before (censored: unknown, never negative). Times to an event need more than this. Splits are by patient.

Result: not yet run.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = ("Mortality",)
    return config
