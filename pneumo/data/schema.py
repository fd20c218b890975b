"""Words of an index: its classes, splits and columns."""

CLASSES = ("NORMAL", "PNEUMONIA")  # a label is a position in this tuple

# Name of a split in a data set → split of the index. Kaggle's 16 `val` images come from train, and
# are too few for validation
SPLITS = {"train": "train", "val": "train", "test": "test"}

# Of patients and images, for subgroups; '' if a value is not known
#   age: In years, at most `attributes.MAX_AGE`.
#   sex: M, F or O.
#   site: The hospital.
#   device: Manufacturer and model.
#   view: Such as PA.
ATTRIBUTES = ("age", "sex", "site", "device", "view")

FORMAT, DICOM = "format", "DICOM"  # column for the format of a file, '' if it is another

COLUMNS = ["path", "label", "subtype", "patient", "split", "sha256", *ATTRIBUTES, FORMAT]
