"""CXR-LT 2024, tasks 1 and 2: 40 findings with a long tail, on MIMIC-CXR-JPG.

    python -m data_prep.build --reader=mimic_cxr --input=mimic-cxr-jpg/2.0.0 --cxr_lt=cxr-lt-2024 --output=data/mimic
    python -m cxr_jax.evaluate --config=configs/eval/protocols/cxr_lt.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/mimic

The head is linear on cached CLS and mean patch tokens; for GLoRI train configs/finetune/glori.py on these targets, with
a loss for long tails, and score it with configs/eval/head.py. The score of the challenge is the mean average precision,
`auprc_macro` of results.json. CXR-LT labels images, so studies stay apart (`study=average` joins them).

Result: not yet run.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = (
        "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
        "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
        "Support Devices", "Calcification of the Aorta", "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass",
        "Nodule", "Pleural Thickening", "Pneumomediastinum", "Pneumoperitoneum", "Subcutaneous Emphysema",
        "Tortuous Aorta", "Adenopathy", "Azygos Lobe", "Clavicle Fracture", "Fissure", "Granuloma", "Hydropneumothorax",
        "Infarction", "Kyphosis", "Lobar Atelectasis", "Pulmonary Embolism", "Pulmonary Hypertension", "Rib Fracture",
        "Round Atelectasis", "Tuberculosis",
    )  # fmt: skip
    config.data.where.source = "mimic_cxr"
    config.features.max_gb = 16.0
    return config
