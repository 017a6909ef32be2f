"""PadChest: 16-bit PNGs in numbered folders, lists with stray spaces, rows without labels, remarks, MONOCHROME1."""

from publishers.paint import pixels, png, write, write_table

HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,Report,Labels"
)
M1, M2 = "MONOCHROME1", "MONOCHROME2"
ROWS = (  # file, folder, date, patient, born, sex, projection, photometric, labels
    ("a1.png", "0", "20140915", "p1", "1930.0", "F", "PA", M2, "['cardiomegaly', ' pleural effusion', 'goiter']"),
    ("a2.png", "0", "20140915", "p1", "1930.0", "F", "L", M2, "['cardiomegaly', ' pleural effusion', 'goiter']"),
    ("b1.png", "17", "20100302", "p2", "", "M", "AP_horizontal", M1, "['normal']"),
    ("c1.png", "54", "20091231", "p3", "1999", "O", "COSTAL", M2, ""),
    ("d1.png", "54", "20091231", "p4", "1899", "None", "AP", M2, "['unchanged', 'callus rib fracture', '']"),
    ("e1.png", "54", "20170101", "p5", "1950", "M", "EXCLUDE", M2, '["lobar atelectasis", \'goiter\']'),
)  # fmt: skip


def sixteen_bits(seed):
    return pixels(seed).astype("uint16") * 257


def imitate(root, sub="{}/"):
    """`sub` is the folder of ImageDir below the root."""
    for seed, row in enumerate(ROWS):
        write(root, sub.format(row[1]) + row[0], png(sixteen_bits(seed)))
    table = [
        [n, file, folder, date, f"s{n}", patient, born, sex, "POSTEROANTERIOR", projection, "Manual review", "No", "CR",
         "Imaging Dynamics Company Ltd", photometric, "silueta cardiac normal .", labels]
        for n, (file, folder, date, patient, born, sex, projection, photometric, labels) in enumerate(ROWS)
    ]  # fmt: skip
    write_table(root, "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", HEADER, table)
    write(root, sub.format(50) + "stray.png", png(sixteen_bits(9)))
