"""How good a model does a study find in the time that somebody has, without any other choice?

Command:
    mlflow run . -e tune -P budget=1h -P data=PATH/xray_dataset.tar.gz

Expected:
    Written down before the first study. In 10 minutes on two cores the mean AUC of three winners on
    one half of the official test is not below that of three studies of tune_mobilenet of the same
    duration (-P experiment=tune_mobilenet -P timeout=540).

Result (2026-11-30):
    Not measured yet.

Interpretation:
    A plan completes this experiment: it fixes backbone, image size, number of epochs and of folds
    by the rules in pneumo/tuning/planning/rules.py, from the images, the speed of the machine and
    the budget. BASE and what is searched are those of best.py, which was tuned on these images'
    validation split. On other images less is to be expected.

    Not tried: successive halving over image sizes, because it is not known whether trials rank
    alike at two sizes; bad trials are pruned by the median over epochs. Optuna recommends its
    Gaussian process for few trials, but that needs PyTorch, so the sampler is TPE.
"""

from experiments.best import BASE, suggest

__all__ = ["BASE", "suggest"]
