"""VinDr-CXR: 28 findings and diseases marked by radiologists, on the published test set (3,000 images).

    python -m data_prep.build --reader=vindr_cxr --input=DIR --output=data/vindr
    python -m cxr_jax.evaluate --config=configs/eval/protocols/vindr.py --workdir=runs/eval \\
        --config.init_from=runs/chexfound --config.data.path=data/vindr

Train and val are drawn from the 15,000 published training images, on which three radiologists each read alone; the test
labels are of five in consensus. Findings that hardly occur have wide intervals, or none. GLoRI: see nih14.py.

Result: not yet run.
"""

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.data.targets = (
        "No Finding", "Cardiomegaly", "Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Atelectasis",
        "Pneumothorax", "Pleural Effusion", "Emphysema", "Fibrosis", "Infiltration", "Pleural Thickening",
        "Clavicle Fracture", "Rib Fracture", "Tuberculosis", "COPD", "Aortic Enlargement", "Calcification",
        "Cavitation", "Cyst", "Enlarged Pulmonary Artery", "Interstitial Lung Disease", "Lung Tumor",
        "Mediastinal Shift", "Nodule or Mass", "Other Disease", "Other Lesion",
    )  # fmt: skip
    config.data.where.source = "vindr_cxr"
    return config
