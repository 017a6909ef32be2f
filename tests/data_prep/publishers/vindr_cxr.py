"""VinDr-CXR, as DICOM or PNG copies: PhysioNet's tables of three radiologists, the challenge's single one."""

from publishers.paint import pixels, png, write, write_table
from tiny_dicom import dicom, written

LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other {},No finding"
)
BOX = "x_min,y_min,x_max,y_max"


def row(image, *positive, reader=(), kind="diseases"):
    names = LABELS.format(kind).split(",")
    return [image, *reader, *("1" if name in positive else "0" for name in names)]


def image(root, file, seed):
    """A PNG, or a DICOM file of the same picture as a negative, by the file's ending."""
    picture = pixels(seed, height=100, width=80)
    if file.endswith(".png"):
        write(root, file, png(picture))
        return
    tags = {"PatientName": "NGUYEN^THI", "PatientSex": "M", "PatientAge": "061Y", "ViewPosition": None}
    write(root, file, written(dicom(255 - picture, PhotometricInterpretation="MONOCHROME1", **tags)))


def imitate(root, suffix=".png"):
    """50a4 is healthy to all; 9a5b has a nodule to two of three and a consolidation to one; b3c1 is of the test set."""
    for seed, file in enumerate(("train/50a4", "train/9a5b", "test/b3c1")):
        image(root, file + suffix, seed)
    train = [row("50a4", "No finding", reader=(reader,)) for reader in ("R1", "R2", "R3")]
    train += [
        row("9a5b", "Nodule/Mass", "Consolidation", reader=("R8",)),
        row("9a5b", "Nodule/Mass", reader=("R9",)),
        row("9a5b", "No finding", reader=("R10",)),
    ]
    write_table(root, "annotations/image_labels_train.csv", "image_id,rad_id," + LABELS.format("diseases"), train)
    test = [row("b3c1", "Pleural effusion", "Other disease", kind="disease")]
    write_table(root, "annotations/image_labels_test.csv", "image_id," + LABELS.format("disease"), test)
    boxes = [
        ["50a4", "R1", "No finding", "", "", "", ""],
        ["9a5b", "R8", "Nodule/Mass", "8", "10", "16.5", "30"],
        ["9a5b", "R9", "Nodule/Mass", "9", "10", "17", "31"],
        ["9a5b", "R8", "Consolidation", "40", "50", "200", "90"],
    ]
    write_table(root, "annotations/annotations_train.csv", f"image_id,rad_id,class_name,{BOX}", boxes)
    test_boxes = [["b3c1", "Pleural effusion", "0", "0", "40", "50"]]
    write_table(root, "annotations/annotations_test.csv", f"image_id,class_name,{BOX}", test_boxes)


def imitate_challenge(root):
    """Images reduced by ten; `train_meta.csv` has the originals' height and width."""
    for seed, file in enumerate(("train/50a4.png", "train/9a5b.png", "test/b3c1.png")):
        image(root, file, seed)
    rows = [["50a4", "No finding", "14", reader, "", "", "", ""] for reader in ("R1", "R2", "R3")]
    rows += [
        ["9a5b", "Cardiomegaly", "3", "R8", "80", "100", "160", "300"],
        ["9a5b", "Cardiomegaly", "3", "R9", "80", "100", "160", "300"],
        ["9a5b", "No finding", "14", "R10", "", "", "", ""],
    ]
    write_table(root, "train.csv", f"image_id,class_name,class_id,rad_id,{BOX}", rows)
    write_table(root, "train_meta.csv", "image_id,dim0,dim1", [["50a4", "1000", "800"], ["9a5b", "1000", "800"]])
