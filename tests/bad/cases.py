"""Inputs without models, and models and weights, whose stores are slow to make."""

from tests.bad.archives import CASES as ARCHIVES
from tests.bad.configurations import CASES as CONFIGURATIONS
from tests.bad.datasets import CASES as DATASETS
from tests.bad.models import CASES as STORED
from tests.bad.tables import CASES as TABLES
from tests.bad.weights import CASES as WEIGHTS

CASES = [*ARCHIVES, *CONFIGURATIONS, *DATASETS, *TABLES]
MODELS = [*STORED, *WEIGHTS]
