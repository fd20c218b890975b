"""Quality cost of shared augmentations: `feature_cache` on and off, five seeds.

    python -m tests.benchmarks.views --data ARCHIVE --weights FILE

The baseline of `study` at strength 0.5, on all images; prints the AUC on validation of each run,
and the mean difference with its 95 % interval (Student's t, the seeds paired).
"""

import os
import tempfile

from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import open_dataset
from pneumo.training.train import train
from tests.benchmarks.study_space import arguments, config_of

SMOKE = "--data sample --backbone cnn --weights none --size 32 --epochs 1 --seeds 2"


def main() -> None:
    """Print the results."""
    parser = arguments()
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    images = open_dataset(options.data).decode(options.size, 0)
    labels = images.split("val").labels

    def auc(seed: int, cache: str) -> float:
        fields = {"seed": seed, "feature_cache": cache, "augment_strength": 0.5}
        result = train(config_of(options).override(fields), images)
        return roc_auc_score(labels, result.val_logits)

    with tempfile.TemporaryDirectory() as cache:
        os.environ["PNEUMO_CACHE"] = cache
        rows = [(auc(seed, "on"), auc(seed, "off")) for seed in range(options.seeds)]
    print("seed  on      off")
    for seed, (on, off) in enumerate(rows):
        print(f"{seed:4}  {on:.4f}  {off:.4f}")
    on, off = zip(*rows, strict=True)
    low, high = ttest_rel(on, off).confidence_interval()
    print(f"on − off: {(sum(on) - sum(off)) / len(rows):+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
