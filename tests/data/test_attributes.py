"""Attributes of DICOM files, and of tables as text."""

import pytest

from pneumo.data import attributes
from tests.support.dicom import radiograph, to_bytes
from tests.support.images import RAMP, file_of


def read(**values) -> dict[str, str]:
    return attributes.read_dicom(to_bytes(radiograph(RAMP, **values)))


def test_all_attributes():
    assert read(
        PatientAge="004Y",
        PatientSex="F",
        InstitutionName="Children's Hospital",
        Manufacturer="ACME",
        ManufacturerModelName="Ray 3",
        ViewPosition="PA",
        PatientID="1234",
    ) == {
        "age": "4",
        "sex": "F",
        "site": "Children's Hospital",
        "device": "ACME Ray 3",
        "view": "PA",
        "patient_id": "\n1234",
    }


def test_what_is_missing_is_unknown():
    assert set(read().values()) == {""}
    assert attributes.read_dicom(b"no DICOM at all") is None
    assert attributes.read_dicom(b"") is None
    assert attributes.read_dicom(bytes(128) + b"DICM") is None
    from PIL import Image

    assert attributes.read_dicom(file_of(Image.fromarray(RAMP))) is None


@pytest.mark.parametrize(
    ("text", "age"),
    [
        *[("003Y", "3"), ("018M", "1.5"), ("010W", "0.192"), ("010D", "0.0274"), ("095Y", "90")],
        *[("7", "7"), ("7.5", "7.5"), ("18m", "1.5"), ("90", "90"), ("120", "90"), ("121", "")],
        *[("", ""), ("Y", ""), ("four", ""), ("-1", ""), ("nan", ""), ("inf", ""), ("-3M", "")],
    ],
)
def test_ages(text, age):
    assert attributes.format_age(text) == age


@pytest.mark.parametrize(
    ("text", "sex"),
    [*[("M", "M"), ("f", "F"), ("Male", "M"), ("FEMALE", "F"), ("O", "O"), ("other", "O")]]
    + [*[("", ""), ("X", ""), ("man", ""), ("MF", "")]],
)
def test_sexes(text, sex):
    assert attributes.format_sex(text) == sex


def test_long_names_of_devices_are_cut():
    found = read(Manufacturer="a" * 64, ManufacturerModelName="b" * 64)
    assert found["device"] == "a" * 64


def test_texts_are_short_and_printable():
    assert read(InstitutionName="a" * 64)["site"] == "a" * 64
    assert read(InstitutionName="one\x1b[2Jtwo")["site"] == ""


def test_a_pseudonym_depends_on_the_data():
    first = attributes.pseudonym("1234", "salt")
    assert first == attributes.pseudonym("1234", "salt")
    others = attributes.pseudonym("1234", "other"), attributes.pseudonym("1235", "salt")
    assert len({first, *others}) == 3
    assert len(first) == 22
    assert "1234" not in first
