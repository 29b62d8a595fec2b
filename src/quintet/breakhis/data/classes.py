"""The data set's magnifications, classes, tumour types and numbers of slides (Spanhol 2016)."""

MAGNIFICATIONS = ("40X", "100X", "200X", "400X")
CLASSES = ("benign", "malignant")
TYPES = {  # folder -> code in names; four benign, four malignant
    "adenosis": "A",
    "fibroadenoma": "F",
    "phyllodes_tumor": "PT",
    "tubular_adenoma": "TA",
    "ductal_carcinoma": "DC",
    "lobular_carcinoma": "LC",
    "mucinous_carcinoma": "MC",
    "papillary_carcinoma": "PC",
}
BENIGN = tuple(TYPES)[:4]


def class_of(tumour_type: str) -> str:
    return "benign" if tumour_type in BENIGN else "malignant"


def case_number(patient: str) -> str:
    """14-22549AB -> 14-22549: slides whose numbers differ only in letters are of one biopsy."""
    return patient.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
