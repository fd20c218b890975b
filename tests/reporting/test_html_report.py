"""Text of the pages."""

import pytest

from pneumo.reporting.html_report import format_field


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.123456", "0.123"),
        ("128-64", "128-64"),
        ("0.0", "0"),
        ("mobilenet_2_5_224.h5:abcdef12", "mobilenet_2_5_224.h5:abcdef12"),
    ],
)
def test_fields_of_a_run(value, expected):
    assert format_field(value) == expected
