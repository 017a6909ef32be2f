"""MIMIC-CXR-JPG 2.0.0: gzipped tables, labels as floats and by study, a study that has none, a view that is empty."""

from publishers.paint import write, write_table

META = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
FINDINGS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
IMAGES = (  # dicom_id, subject, study, view, date, split
    ("02aa804e-bde0afdd", "10000032", "50414267", "PA", "21800506", "train"),
    ("174413ec-4ec4c1f7", "10000032", "50414267", "LATERAL", "21800506", "train"),
    ("68b5c4b1-227d0485", "10000764", "57375967", "AP", "21321015", "validate"),
    ("096052b7-d256dc40", "11000898", "50771383", "", "21880803", "test"),
)


def path(image):
    dicom, subject, study = image[:3]
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"


def imitate(root):
    for seed, image in enumerate(IMAGES):
        write(root, path(image), seed)
    meta = [
        [dicom, subject, study, "CHEST (PA AND LAT)", view, "3056", "2544", date, "213014.531", "", "", "Erect"]
        for dicom, subject, study, view, date, _ in IMAGES
    ]
    write_table(root, "mimic-cxr-2.0.0-metadata.csv.gz", META, meta)
    split = [[image[0], image[2], image[1], image[5]] for image in IMAGES]
    write_table(root, "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", split)
    first = ["10000032", "50414267", *[""] * 8, "1.0", *[""] * 5]
    second = ["10000764", "57375967", "", "-1.0", "0.0", *[""] * 10, "1.0"]
    for labeller, rows in {"chexpert": [first, second], "negbio": [second]}.items():
        write_table(root, f"mimic-cxr-2.0.0-{labeller}.csv.gz", f"subject_id,study_id,{FINDINGS}", rows)


def imitate_patients(file):
    rows = [["10000032", "F", "52", "2180", "2014 - 2016", ""], ["10000764", "M", "91", "2132", "2008 - 2010", ""]]
    write_table(file.parent, file.name, "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod", rows)


def imitate_cxr_lt(folder, year, images=(0, 2, 3)):
    """2023: a file a split; 2024: labels.csv with a column split, Normal for No Finding, and Round(ed) Atelectasis."""
    start = "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning"
    chosen = [IMAGES[index] for index in images]
    rows = [[*image[:4], "postero-anterior", path(image)] for image in chosen]
    if year == 2024:
        header = f"{start},fpath,split,Adenopathy,Normal,Pleural Effusion,Round(ed) Atelectasis"
        labels = [["train", 0, 1, 0, 0], ["development", 0, 0, 1, 1], ["test", 1, 0, 0, 0]]
        write_table(folder, "labels.csv", header, [a + b for a, b in zip(rows, labels, strict=True)])
        return
    header = f"{start},path,Hernia,No Finding,Something New"
    for name, row, labels in zip(
        ("train", "development", "test"), rows, ([1, 0, 1], [0, 1, 0], [0, 0, 0]), strict=True
    ):
        write_table(folder, f"{name}.csv", header, [row + labels])
