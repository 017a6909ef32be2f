"""CheXpert v1.0: paths with the release's name before them, empty cells, -1.0, an age of 0, a lateral of its study."""

from publishers.paint import write, write_table

FINDINGS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{FINDINGS}"


def cells(**values):
    """The 14 cells; names with "_" for a space."""
    return [values.get(name.replace(" ", "_"), "") for name in FINDINGS.split(",")]


def imitate(root, release="CheXpert-v1.0-small", train="train", valid="valid", tables=""):
    """`train`, `valid` and `tables` are the folders on disk; the tables' paths always read release/train/..."""
    rows = [
        ["patient00001/study1/view1_frontal.jpg", "Female", "68", "Frontal", "AP", *cells(No_Finding="1.0", Edema="0")],
        ["patient00002/study2/view1_frontal.jpg", "Male", "0", "Frontal", "PA", *cells(Edema="-1.0", Pneumonia="0.0")],
        ["patient00002/study2/view2_lateral.jpg", "Male", "87", "Lateral", "", *cells(Edema="-1.0", Pneumonia="0.0")],
        ["patient00003/study1/view1_frontal.jpg", "Unknown", "90", "Frontal", "LL", *cells(Pleural_Effusion="1.0")],
    ]  # fmt: skip
    for seed, row in enumerate(rows):
        write(root, f"{train}/{row[0]}", seed)
        row[0] = f"{release}/train/{row[0]}"
    write_table(root, f"{tables}train.csv", HEADER, rows)
    file = "patient64541/study1/view1_frontal.jpg"
    write(root, f"{valid}/{file}", 9)
    row = [f"{release}/valid/{file}", "Male", "73", "Frontal", "AP", *["0.0"] * 13, "1.0"]
    write_table(root, f"{tables}valid.csv", HEADER, [row])


def imitate_test(root):
    """The radiologists' test labels, which came later: Path and findings only."""
    file = "test/patient64741/study1/view1_frontal.jpg"
    write(root, file, 20)
    write_table(root, "test_labels.csv", f"Path,{FINDINGS}", [[file, *["0.0"] * 8, "1.0", *["0.0"] * 5]])
