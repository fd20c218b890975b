"""Attributes of patients and images, from DICOM files or as text in a table."""

import hashlib
from collections.abc import Callable

from pneumo.inference.decode import is_dicom
from pneumo.inference.untrusted import UnreadableImageError
from pneumo.runtime.errors import is_printable_text

MAX_AGE = 90  # older patients are so rare that their age can identify them
MAX_POSSIBLE_AGE = 120  # greater ones, as in the table of NIH, are errors
MAX_LENGTH = 64  # characters, as DICOM permits

PSEUDONYM_PREFIX = "dicom-"

YEARS_PER_UNIT = {"Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def read_dicom(data: bytes) -> dict[str, str] | None:
    """Read the attributes of a DICOM file.

    Args:
        data: Bytes of a file.

    Returns:
        `schema.ATTRIBUTES`, and `patient_id`, the id with its issuer, which may not be stored.
        None if the file is not a readable DICOM file.
    """
    if not is_dicom(data):
        return None
    from pneumo.inference.dicom import read_header, view_of

    try:
        header = read_header(data)
    except UnreadableImageError:
        return None

    def text(name: str) -> str:
        return _to_text(lambda: header.get(name))

    device = f"{text('Manufacturer')} {text('ManufacturerModelName')}"
    issuer, patient_id = text("IssuerOfPatientID"), text("PatientID")
    return {
        "age": format_age(text("PatientAge")),
        "sex": format_sex(text("PatientSex")),
        "site": text("InstitutionName"),
        "device": device.strip()[:MAX_LENGTH],
        "view": _to_text(lambda: view_of(header)),
        "patient_id": f"{issuer}\n{patient_id}" if patient_id else "",
    }


def _to_text(read: Callable[[], object]) -> str:
    """Return an attribute as text, '' if it is missing, invalid or not printable."""
    try:
        text = str(read() or "").strip()
    except Exception:  # a value that its type does not permit makes pydicom raise nearly anything
        return ""
    return text[:MAX_LENGTH] if is_printable_text(text) else ""


def format_age(text: str) -> str:
    """Return an age in years, at most `MAX_AGE`; '' if the text is no age.

    Args:
        text: Years as a number, or a number with its unit as DICOM writes it, such as `018M`.
    """
    unit = text[-1:].upper()
    number, factor = (text[:-1], YEARS_PER_UNIT[unit]) if unit in YEARS_PER_UNIT else (text, 1)
    try:
        years = float(number) * factor
    except ValueError:
        return ""
    return f"{min(years, MAX_AGE):.3g}" if 0 <= years <= MAX_POSSIBLE_AGE else ""


def format_sex(text: str) -> str:
    """Return M, F or O, from one letter or from the words male, female and other, else ''."""
    initial = text[:1].upper()
    return initial if text.upper() in ("M", "F", "O", "MALE", "FEMALE", "OTHER") else ""


def pseudonym(patient_id: str, salt: str) -> str:
    """Return a patient's pseudonym: `PSEUDONYM_PREFIX` and 16 hex digits.

    Everybody who has the files can compute the salt, and find out whether an id belongs to a
    pseudonym.
    """
    return PSEUDONYM_PREFIX + hashlib.sha256(f"{salt}\n{patient_id}".encode()).hexdigest()[:16]
