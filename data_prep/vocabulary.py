"""One vocabulary of findings for all published sources, and each source's own words for them.

In: a source's name for a finding. Out: the canonical names it stands for (`names_of`), the classes a source can say
anything about (`classes_of`), and the table of data_prep/readers/README.md (`table`).

Canonical names are those of CXR-LT and CheXpert where they have one, else plain words in the same spelling. Two names
are made one only where the publishers mean the same; a part also counts as its whole (a rib fracture is a fracture)
where the source itself lists both levels in one list, as PadChest does. Everything else keeps a class of its own.
"""

from collections.abc import Mapping

# The 14 of the CheXpert labeller: CheXpert, MIMIC-CXR-JPG and BRAX.
_CHEXPERT = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
# Added by CXR-LT 2023 (26 in all), by CXR-LT 2024 (40 in its tasks 1 and 2), and by the zero-shot task of 2024.
_CXR_LT = (
    "Calcification of the Aorta", "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule",
    "Pleural Thickening", "Pneumomediastinum", "Pneumoperitoneum", "Subcutaneous Emphysema", "Tortuous Aorta",
    "Adenopathy", "Azygos Lobe", "Clavicle Fracture", "Fissure", "Granuloma", "Hydropneumothorax", "Infarction",
    "Kyphosis", "Lobar Atelectasis", "Pulmonary Embolism", "Pulmonary Hypertension", "Rib Fracture",
    "Round Atelectasis", "Tuberculosis", "Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis",
)  # fmt: skip
_SAME = "="  # the source writes the canonical name

# Source -> canonical name -> the source's words, joined by "; ". A word may stand under several canonical names.
SOURCES: Mapping[str, Mapping[str, str]] = {
    "chexpert": {**dict.fromkeys(_CHEXPERT, _SAME), "Lung Opacity": "=; Airspace Opacity"},
    "cxr_lt": {
        **dict.fromkeys(_CHEXPERT + _CXR_LT, _SAME),
        "No Finding": "=; Normal",
        "Round Atelectasis": "Round(ed) Atelectasis",
    },
    "nih_chestxray14": {
        **dict.fromkeys(
            ("No Finding", "Cardiomegaly", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax",
             "Emphysema", "Fibrosis", "Hernia", "Mass", "Nodule"), _SAME,
        ),
        "Infiltration": "=; Infiltrate",
        "Pleural Effusion": "Effusion",
        "Pleural Thickening": "Pleural_Thickening",
    },
    "vindr_cxr": {
        **dict.fromkeys(
            ("Cardiomegaly", "Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax",
             "Emphysema", "Infiltration", "Tuberculosis", "COPD"), _SAME,
        ),
        "No Finding": "No finding",
        "Pleural Effusion": "Pleural effusion",
        "Pleural Thickening": "Pleural thickening",
        "Fibrosis": "Pulmonary fibrosis",
        "Clavicle Fracture": "Clavicle fracture",
        "Rib Fracture": "Rib fracture",
        "Aortic Enlargement": "Aortic enlargement",
        "Calcification": _SAME,
        "Cavitation": "Lung cavity",
        "Cyst": "Lung cyst",
        "Enlarged Pulmonary Artery": "Enlarged PA",
        "Interstitial Lung Disease": "ILD",
        "Lung Tumor": "Lung tumor",
        "Mediastinal Shift": "Mediastinal shift",
        "Nodule or Mass": "Nodule/Mass",
        "Other Disease": "Other diseases; Other disease",
        "Other Lesion": "Other lesion",
    },
    "rsna_pneumonia": {"No Finding": "Normal", "Lung Opacity": _SAME, "Pneumonia": "Target"},
    "tbx11k": {
        "No Finding": "health",
        "Tuberculosis": "tb",
        "Active Tuberculosis": "ActiveTuberculosis; active_tb",
        "Latent Tuberculosis": "ObsoletePulmonaryTuberculosis; latent_tb",
        "Uncertain Tuberculosis": "PulmonaryTuberculosis; uncertain_tb",
    },
    "shenzhen": {"No Finding": "_0", "Tuberculosis": "_1"},
    "montgomery": {"No Finding": "_0", "Tuberculosis": "_1"},
    "jsrt": {"Nodule": "JPCLN"},
    "padchest": {
        "No Finding": "normal",
        "Cardiomegaly": "cardiomegaly",
        "Edema": "pulmonary edema",
        "Consolidation": "consolidation",
        "Pneumonia": "pneumonia; atypical pneumonia",
        "Atelectasis": "atelectasis; atelectasis basal; laminar atelectasis; lobar atelectasis; round atelectasis; "
        "segmental atelectasis; total atelectasis",
        "Pneumothorax": "pneumothorax; hydropneumothorax",
        "Pleural Effusion": "pleural effusion; loculated pleural effusion; loculated fissural effusion; "
        "hydropneumothorax",
        "Fracture": "fracture; clavicle fracture; humeral fracture; rib fracture; callus rib fracture; "
        "vertebral fracture",
        "Support Devices": "NSG tube; artificial aortic heart valve; artificial heart valve; artificial mitral heart "
        "valve; catheter; central venous catheter; central venous catheter via jugular vein; central venous catheter "
        "via subclavian vein; central venous catheter via umbilical vein; chest drain tube; dai; double J stent; dual "
        "chamber device; electrical device; endotracheal tube; gastrostomy tube; nephrostomy tube; pacemaker; "
        "reservoir central venous catheter; single chamber device; tracheostomy tube; ventriculoperitoneal drain tube",
        "Emphysema": "emphysema",
        "Fibrosis": "pulmonary fibrosis",
        "Hernia": "hiatal hernia",
        "Infiltration": "infiltrates",
        "Mass": "mass; pulmonary mass",
        "Nodule": "nodule; multiple nodules",
        "Pleural Thickening": "pleural thickening; apical pleural thickening; calcified pleural thickening",
        "Pneumomediastinum": "pneumomediastinum",
        "Pneumoperitoneum": "pneumoperitoneo",
        "Subcutaneous Emphysema": "subcutaneous emphysema",
        "Adenopathy": "adenopathy; calcified adenopathy; calcified mediastinal adenopathy",
        "Azygos Lobe": "azygos lobe",
        "Clavicle Fracture": "clavicle fracture",
        "Granuloma": "granuloma; calcified granuloma",
        "Hydropneumothorax": "hydropneumothorax",
        "Kyphosis": "kyphosis",
        "Lobar Atelectasis": "lobar atelectasis",
        "Pulmonary Hypertension": "pulmonary hypertension; pulmonary artery hypertension; pulmonary venous "
        "hypertension",
        "Rib Fracture": "rib fracture; callus rib fracture",
        "Round Atelectasis": "round atelectasis",
        "Tuberculosis": "tuberculosis",
        "Bulla": "bullas",
        "Osteopenia": "osteopenia",
        "Scoliosis": "scoliosis",
        "COPD": "COPD signs",
        "Cavitation": "cavitation",
        "Cyst": "cyst",
        "Enlarged Pulmonary Artery": "pulmonary artery enlargement",
        "Mediastinal Shift": "mediastinal shift",
        "Air Trapping": "air trapping",
        "Alveolar Pattern": "alveolar pattern",
        "Aortic Atheromatosis": "aortic atheromatosis",
        "Aortic Elongation": "aortic elongation; ascendent aortic elongation; descendent aortic elongation; supra "
        "aortic elongation",
        "Bronchiectasis": "bronchiectasis",
        "Calcified Densities": "calcified densities",
        "Costophrenic Angle Blunting": "costophrenic angle blunting",
        "Flattened Diaphragm": "flattened diaphragm",
        "Ground Glass Pattern": "ground glass pattern",
        "Heart Insufficiency": "heart insufficiency",
        "Hemidiaphragm Elevation": "hemidiaphragm elevation",
        "Hilar Congestion": "hilar congestion",
        "Hilar Enlargement": "hilar enlargement; vascular hilar enlargement",
        "Hyperinflated Lung": "hyperinflated lung",
        "Hypoexpansion": "hypoexpansion; hypoexpansion basal",
        "Interstitial Pattern": "interstitial pattern; reticular interstitial pattern; reticulonodular interstitial "
        "pattern",
        "Lung Metastasis": "lung metastasis",
        "Mediastinal Enlargement": "mediastinal enlargement; superior mediastinal enlargement",
        "Mediastinal Mass": "mediastinal mass",
        "Pericardial Effusion": "pericardial effusion",
        "Pleural Plaques": "pleural plaques; calcified pleural plaques",
        "Sternotomy": "sternotomy",
        "Tuberculosis Sequelae": "tuberculosis sequelae",
        "Vertebral Degenerative Changes": "vertebral degenerative changes",
        "Volume Loss": "volume loss",
    },
}  # fmt: skip
# The columns of `table`: sources that share their words share one.
_COLUMNS = {
    "CheXpert, MIMIC, BRAX": "chexpert", "CXR-LT": "cxr_lt", "NIH": "nih_chestxray14", "VinDr": "vindr_cxr",
    "RSNA": "rsna_pneumonia", "TBX11K": "tbx11k", "Shenzhen, Montgomery": "shenzhen", "JSRT": "jsrt",
    "PadChest": "padchest",
}  # fmt: skip


def _ordered() -> tuple[str, ...]:
    """All canonical names, each once: the 14, then those of CXR-LT, then the rest as the sources bring them."""
    own = (name for words in SOURCES.values() for name in words)
    return tuple(dict.fromkeys((*_CHEXPERT, *_CXR_LT, *own)))


FINDINGS = _ordered()


def classes_of(source: str) -> tuple[str, ...]:
    """The canonical names that `source` can say anything about, in the order of `FINDINGS`."""
    return tuple(name for name in FINDINGS if name in SOURCES[source])


def names_of(source: str) -> dict[str, tuple[str, ...]]:
    """The source's word in lower case -> the canonical names it stands for."""
    words: dict[str, list[str]] = {}
    for name, joined in SOURCES[source].items():
        for word in joined.split("; "):
            words.setdefault((name if word == _SAME else word).lower(), []).append(name)
    return {word: tuple(names) for word, names in words.items()}


def table() -> str:
    """The vocabulary as a Markdown table: a row a class, the words of each source; "=" is the canonical name."""
    rows = [["class", *_COLUMNS], ["---"] * (len(_COLUMNS) + 1)]
    rows += [[name, *(SOURCES[source].get(name, "") for source in _COLUMNS.values())] for name in FINDINGS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"
