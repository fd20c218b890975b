"""Coverage of 95 % intervals of the true value, with the present and the former methods.

    python -m tests.benchmarks.coverage

Simulates test sets of patients who have 1 to 8 images, as often as the patients with pneumonia of
the official test split do. A patient's images are hits with a probability of his or her own, which
has a beta distribution; scores of an image are the sum of a normal term of the patient and one of
the image. Sizes are those of the half of the test split that README's results are for, and one
larger. The true values are 25 sensitivities from 0.9 to 0.999 and 10 AUCs from 0.95 to 0.995.

Prints, for each size and each intraclass correlation (ICC), the mean and the least coverage over
the true values: of percentiles of a bootstrap of patients, which were used before, and of the
intervals in use.
"""

import argparse
import itertools

import numpy as np
import pandas as pd
from scipy.stats import norm

from pneumo.evaluation import bootstrap
from pneumo.evaluation.intervals import auc_interval, proportion_interval

# Patients of the official test split's half with 1, 2, … images with pneumonia, 8 standing for more
PATIENTS = np.array([59, 14, 9, 7, 5, 2, 1, 1])
IMAGES = 117, 195, 624  # of the proportions
CLASSES = (195, 117), (390, 234)  # images with pneumonia and without, of the AUCs
ICCS = 0.1, 0.2, 0.3
SENSITIVITIES = np.linspace(0.9, 0.999, 25)
AUCS = np.linspace(0.95, 0.995, 10)
SMOKE = "--sets 2 --auc_sets 2 --old_sets 2"
DRAWS = 300  # bootstrap samples of each simulated test set


def image_counts(rng: np.random.Generator, images: int, sets: int) -> np.ndarray:
    """Draw patients until they have that many images, the last one cut short.

    Returns:
        Images of each patient of each set, int64 array of shape (sets, patients); 0 where a set
        has fewer patients than others.
    """
    counts = rng.choice(np.arange(1, 9), p=PATIENTS / PATIENTS.sum(), size=(sets, images))
    left = images - (counts.cumsum(axis=1) - counts)
    counts = np.minimum(counts, np.maximum(left, 0))
    return counts[:, counts.any(axis=0)]


def proportions(
    rng: np.random.Generator, sensitivity: float, icc: float, images: int, sets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw hits and images of each patient: int64 arrays of shape (sets, patients)."""
    counts = image_counts(rng, images, sets)
    spread = 1 / icc - 1
    own = rng.beta(sensitivity * spread, (1 - sensitivity) * spread, size=counts.shape)
    return rng.binomial(counts, own), counts


def percentiles(hits: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bound with the former method, percentiles of a patient bootstrap, as `proportions`."""
    rng, found = np.random.default_rng(0), []
    for own_hits, own_images in zip(hits, images, strict=True):
        patients = np.count_nonzero(own_images)  # they come first
        shares = np.full(patients, 1 / patients)
        drawn = rng.multinomial(patients, shares, size=DRAWS).astype(float)
        found.append(drawn @ own_hits[:patients] / (drawn @ own_images[:patients]))
    return tuple(np.percentile(found, bootstrap.CI_PERCENTILES, axis=1))


def covers(bounds: tuple[np.ndarray, np.ndarray], value: float) -> np.ndarray:
    """Return whether each interval contains a value."""
    return (bounds[0] <= value) & (value <= bounds[1])


def of_proportions(
    icc: float, images: int, sets: int, old_sets: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the coverage of both methods for each of `SENSITIVITIES`.

    Args:
        icc: Intraclass correlation of the hits.
        images: Number of images of a test set.
        sets: Number of simulated test sets for each sensitivity.
        old_sets: Number of them that the bootstrap is computed for.
        seed: Seed of the simulation.
    """
    rng, found = np.random.default_rng(seed), {"old": [], "new": []}
    for value in SENSITIVITIES:
        hits, counts = proportions(rng, value, icc, images, sets)
        found["new"].append(covers(proportion_interval(hits, counts), value).mean())
        old = percentiles(hits[:old_sets], counts[:old_sets])
        found["old"].append(covers(old, value).mean())
    return {name: np.array(shares) for name, shares in found.items()}


def scores(
    rng: np.random.Generator, auc: float, icc: float, classes: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a test set: labels, probabilities and patients, as `intervals.auc_interval` takes them.

    The probabilities are scores without bounds, whose order alone matters.
    """
    parts, first = [], 0
    for label, images in zip((1, 0), classes, strict=True):
        [counts] = image_counts(rng, images, 1)
        patients = np.repeat(np.arange(len(counts)), counts)
        values = np.sqrt(icc) * rng.normal(size=len(counts))[patients]
        values += np.sqrt(1 - icc) * rng.normal(size=images)
        values += label * np.sqrt(2) * norm.ppf(auc)
        parts.append((np.full(images, label), values, first + patients))
        first += len(counts)
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def of_auc(
    icc: float, classes: tuple[int, int], sets: int, old_sets: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the coverage of both methods for each of `AUCS`, arguments as `of_proportions`."""
    rng, found = np.random.default_rng(seed), {"old": [], "new": []}
    for value in AUCS:
        covered = {name: [] for name in found}
        for number in range(sets):
            made = scores(rng, value, icc, classes)
            covered["new"].append(covers(auc_interval(*made), value))
            if number < old_sets:
                table = pd.DataFrame(
                    dict(zip(("label", "probability", "patient"), made, strict=True))
                )
                samples = bootstrap.bootstrap_auc(table, bootstrap.resample_patients(table, DRAWS))
                covered["old"].append(
                    covers(np.percentile(samples, bootstrap.CI_PERCENTILES), value)
                )
        for name in found:
            found[name].append(np.mean(covered[name]))
    return {name: np.array(shares) for name, shares in found.items()}


def _print(title: str, values: np.ndarray, found: dict[str, np.ndarray]) -> None:
    columns = [
        f"{shares.mean():8.1%}{shares.min():8.1%} ({values[shares.argmin()]:.3f})"
        for shares in (found["old"], found["new"])
    ]
    print(f"{title:<42}{columns[0]}  {columns[1]}", flush=True)


def main() -> None:
    """Print a line for each size and each ICC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=4000, help="for each sensitivity")
    parser.add_argument("--auc_sets", type=int, default=1000, help="for each AUC")
    parser.add_argument("--old_sets", type=int, default=200, help="that are bootstrapped, too")
    options = parser.parse_args()
    print(
        f"coverage of 95 % intervals: {options.sets} test sets for each sensitivity, "
        f"{options.auc_sets} for each AUC; before: {options.old_sets}, {DRAWS} bootstrap samples"
    )
    print(f"{'':<42}{'before: mean, least (at)':>25}  {'now: mean, least (at)':>25}")
    for images, icc in itertools.product(IMAGES, ICCS):
        found = of_proportions(icc, images, options.sets, options.old_sets)
        _print(f"sensitivity, {images} images, ICC {icc}", SENSITIVITIES, found)
    for classes, icc in itertools.product(CLASSES, ICCS):
        found = of_auc(icc, classes, options.auc_sets, options.old_sets)
        _print(f"AUC, {classes[0]} and {classes[1]} images, ICC {icc}", AUCS, found)


if __name__ == "__main__":
    main()
