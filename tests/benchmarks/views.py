"""Quality cost of shared views of the training images, compared with fresh augmentation.

    python -m tests.benchmarks.views --data ARCHIVE --weights FILE [--test]

The baseline of `study` at strength 0.5, on all images, with `feature_cache=off` and with 2, 4 and 8
shared views. It prints the mean of each metric, and its mean difference from fresh augmentation
with a 95 % interval (Student's t, the seeds paired). With `--test` the AUC on test is one of them,
and each model is one look at test.
"""

import os
import tempfile

import pandas as pd
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import log_loss, roc_auc_score

from pneumo.data.dataset import DecodedDataset, open_dataset
from pneumo.evaluation.metrics import fit_calibration
from pneumo.inference.logits import predict_logits
from pneumo.training import feature_cache
from pneumo.training.config import RunConfig
from pneumo.training.train import train
from tests.benchmarks.study_space import arguments, config_of

SMOKE = (
    "--data sample --backbone cnn --weights none --size 32 --epochs 1 --seeds 2 --views 2 --test"
)


def measure(config: RunConfig, images: DecodedDataset, on_test: bool) -> dict[str, float]:
    """Train a model, and return its metrics."""
    result = train(config, images)
    labels, logits = images.split("val").labels, result.val_logits
    found = {
        "validation AUC": float(roc_auc_score(labels, logits)),
        "robust AUC": result.robust_aucs[0],
        "log loss": float(
            log_loss(labels, fit_calibration(labels, logits).to_probabilities(logits))
        ),
    }
    if on_test:
        test = images.split("test")
        found["test AUC"] = float(
            roc_auc_score(test.labels, predict_logits(result.model, test.images))
        )
    return found


def main() -> None:
    """Print the results."""
    parser = arguments()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--test", action="store_true", help="one look at test for each model")
    options = parser.parse_args()
    images = open_dataset(options.data).decode(options.size, 0)
    tables: dict[str, pd.DataFrame] = {}
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        os.environ["PNEUMO_CACHE"] = cache
        for views in [0, *options.views]:
            patch.setattr(feature_cache, "N_VIEWS", views or 1)
            fields = {"augment_strength": 0.5, "feature_cache": "on" if views else "off"}
            config = config_of(options).override(fields)
            tables[f"{views} views" if views else "fresh"] = pd.DataFrame(
                measure(config.override({"seed": seed}), images, options.test)
                for seed in range(options.seeds)
            )
    for name, table in tables.items():
        print(name, *(f"{metric} {value:.4f}" for metric, value in table.mean().items()), sep="  ")
    fresh = tables.pop("fresh")
    for name, table in tables.items():
        print(f"{name}, minus fresh")
        for metric in table:
            low, high = ttest_rel(table[metric], fresh[metric]).confidence_interval()
            difference = (table[metric] - fresh[metric]).mean()
            print(f"  {metric:16} {difference:+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
