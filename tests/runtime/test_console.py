"""Tables as wide as the terminal."""

import pytest

from tests.support.terminal import watch

TABLE = """
from pneumo.runtime.console import print_table
fields = "dense_widths", "dropout", "augment_strength", "unfreeze_depth", "learning_rate"
rows = [
    ("1003 best", "COMPLETE", "0.9877", "256-128-64", "0.254", "0.25", "2", "0.000338"),
    ("7", "FAIL", *[""] * 6),
]
print_table("Study night", ("trial", "state", "val AUC", *fields), rows)
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_a_study(columns):
    seen = watch("-c", TABLE, columns=columns)
    assert (seen.code, seen.errors) == (0, "")
    lines = seen.screens[-1].splitlines()
    assert max(map(len, lines)) <= columns
    values = "1003 best COMPLETE 0.9877 256-128-64 0.254 0.25 2 0.000338"
    assert [" ".join(line.split()) for line in lines[-2:]] == [values, "7 FAIL"]
    head = {80: ["val dense augment unfreeze learning"], 120: []}[columns]
    names = "trial state val AUC dense_widths dropout augment_strength unfreeze_depth learning_rate"
    head += [names if columns == 120 else "trial state AUC widths dropout strength depth rate"]
    assert [" ".join(line.split()) for line in lines[1:-3]] == head
