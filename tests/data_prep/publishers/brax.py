"""BRAX 1.1.0: PNG and DICOM paths in one table, "85 or more", -1 for uncertain, DICOM files beside."""

from publishers.chexpert import FINDINGS, cells
from publishers.paint import write, write_table

HEADER = (
    "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,"
    f"{FINDINGS},ViewPosition,Rows,Columns,Manufacturer"
)


def imitate(root):
    rows = []
    for seed, (sex, age, view, labels) in enumerate(
        (
            ("F", "85 or more", "PA", cells(No_Finding="1")),
            ("M", "25", "L", cells(Pneumothorax="-1", Fracture="0")),
            ("M", "N/A", "RLD", cells(Support_Devices="1.0")),
        )
    ):
        file = f"id_{seed}/Study_1.{seed}/Series_1.2/image-1.2.{seed}"
        write(root, f"images/{file}.png", seed)
        write(root, f"Anonymized_DICOMs/{file}.dcm", b"DICM")
        end = [view, "2544", "3056", "Philips"]
        dicom, png = f"Anonymized_DICOMs/{file}.dcm", f"images/{file}.png"
        rows.append([dicom, png, f"id_{seed}", sex, age, f"acc{seed}", "2014-01-02", *labels, *end])
    write_table(root, "master_spreadsheet_update.csv", HEADER, rows)
