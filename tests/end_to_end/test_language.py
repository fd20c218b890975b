"""The words of the package and of its documents."""

import re

import pytest

from tests.support.paths import ROOT

# Metaphors, and words that nobody searches for, for which the field has words of its own
AVOIDED = {
    *("crown", "crowned", "crew", "hire", "hired", "duel", "settle", "settled", "deaf"),
    *("strangers", "foretell", "foretells", "twin", "twins", "mend", "mended", "whoever", "knob"),
    *("sick",),
}

# Terms of the field for what the package does
USED = (
    *("hyperparameter", "confidence interval", "ensemble", "test-time augmentation"),
    *("early stopping", "non-inferior", "transfer learning", "occlusion", "least recently used"),
    *("training-serving skew", "dataset shift", "stale", "prevalence", "selection bias"),
)

PACKAGE = sorted(file for file in (ROOT / "pneumo").rglob("*") if file.suffix in (".py", ".html"))
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("*/**/README.md"))]


@pytest.mark.parametrize(
    "file", [*PACKAGE, *DOCUMENTS], ids=lambda file: str(file.relative_to(ROOT))
)
def test_no_metaphors(file):
    words = set(re.findall(r"[a-z]+", file.read_text().lower()))
    assert words & AVOIDED == set()


@pytest.mark.parametrize("term", USED)
def test_the_terms_of_the_field(term):
    texts = (file.read_text().lower() for file in [*PACKAGE, *DOCUMENTS])
    assert any(term in re.sub(r"\s+", " ", text) for text in texts)
