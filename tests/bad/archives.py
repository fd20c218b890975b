"""Archives that are wrong in one way each."""

from tests.bad import Case

CASES: list[Case] = []
