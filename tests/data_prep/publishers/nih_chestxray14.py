"""NIH ChestX-ray14: twelve image folders, a broken box header, two releases of the table, lists of the test set."""

from publishers.paint import write, write_table

TAIL = "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
ROWS = (  # file, folder, findings, follow-up, patient, age, sex, view, list
    ("00000001_000.png", "images_001", "Cardiomegaly", "0", "1", "57", "M", "PA", "train_val"),
    ("00000001_001.png", "images_001", "Cardiomegaly|Effusion", "1", "1", "58", "M", "PA", "train_val"),
    ("00000013_024.png", "images_002", "No Finding", "24", "13", "414", "F", "AP", "train_val"),
    ("00013118_008.png", "images_012", "Infiltration|Pleural_Thickening", "8", "13118", "69", "M", "AP", "test"),
)


def imitate(root, release="2020"):
    for seed, row in enumerate(ROWS):
        write(root, f"{row[1]}/images/{row[0]}", seed)
    if release == "2020":
        name, sex, years = "Data_Entry_2017_v2020.csv", "Patient Sex", "{}"
    else:
        name, sex, years = "Data_Entry_2017.csv", "Patient Gender", "{:0>3}Y"
    header = f"Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},{TAIL}"
    end = ["2682", "2749", "0.14300000000000002", "0.14300000000000002", ""]
    table = [
        [file, found, n, who, years.format(age), s, view, *end] for file, _, found, n, who, age, s, view, _ in ROWS
    ]
    write_table(root, name, header, table)
    box = ["00013118_008.png", "Infiltrate", "256", "512.0", "128", "64", "", "", ""]
    write_table(root, "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", [box])
    for kind in ("train_val", "test"):
        write(root, f"{kind}_list.txt", "".join(f"{row[0]}\n" for row in ROWS if row[8] == kind))
