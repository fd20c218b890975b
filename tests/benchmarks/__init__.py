"""Benchmarks: see the table in tests/README.md."""

import os

# Many images set it. If the libraries are not compiled yet, which uv leaves to their first import,
# each process would compile them again: TensorFlow takes 10 s instead of 3.5 s
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
