"""Variables that tests do not take from their caller; imported before they are read."""

import os

# `mlflow run -e test` hands its own run to its children: a test would attach to it
for variable in [name for name in os.environ if name.startswith("MLFLOW_")]:
    del os.environ[variable]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# OpenMP's threads spin while they wait: beside another process of tests they take ten times as long
os.environ["OMP_NUM_THREADS"] = "1"
# The same figures everywhere, and as many workers as a test asks for
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
# Many images set it. Each command that a test starts would compile all libraries again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
