"""CXR-LT 2024, the 40 findings of its first task: GLoRI with the journal version's options, asymmetric loss added.

    python -m cxr_jax.train --config=configs/finetune/cxr_lt.py --workdir=runs/cxr_lt \\
        --config.init_from=runs/chexfound_vitl16_512 --config.data.path=data/cxr_lt
    python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=runs/cxr_lt_eval \\
        --config.init_from=runs/cxr_lt

For the long tail there are, each by choice: `label_loss.terms`, weights by the effective number of labels
(`balance_beta=0.9999`, late in training with `balance_from_frac=0.8`), and `logit_adjustment=1.0`. Counts are those of
the training rows. Findings that a source does not assess are unknown there and silent.
Hardware: made for accelerators. Result: not yet run, as the data needs MIMIC-CXR's licence.
"""

from configs.finetune import glori

# In the words of data_prep/vocabulary.py.
FINDINGS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    *("Support Devices", "Calcification of the Aorta", "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass"),
    *("Nodule", "Pleural Thickening", "Pneumomediastinum", "Pneumoperitoneum", "Subcutaneous Emphysema"),
    *("Tortuous Aorta", "Adenopathy", "Azygos Lobe", "Clavicle Fracture", "Fissure", "Granuloma"),
    *("Hydropneumothorax", "Infarction", "Kyphosis", "Lobar Atelectasis", "Pulmonary Embolism"),
    *("Pulmonary Hypertension", "Rib Fracture", "Round Atelectasis", "Tuberculosis"),
)


def get_config():
    config = glori.get_config()
    config.batch_size = 256
    config.total_steps = 80_000  # 100 passes over 207,096 images
    config.data.targets = FINDINGS
    config.head.update(adaptive_temperature=True, pyramid=(8, 4, 2))
    config.label_loss.terms = ("bce", "asymmetric")
    config.dtypes.compute = "bfloat16"
    config.checkpoint.every_steps = 2000
    return config
