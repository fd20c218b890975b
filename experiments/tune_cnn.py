"""How good does the published CNN get if its hyperparameters are tuned, at half its image size?

Command:
    mlflow run . -e tune -P experiment=tune_cnn -P data=PATH/xray_dataset.tar.gz

Expected:
    Best validation AUC about 0.99. Test is clearly below, because the normal images of test look
    different.

Result (2026-11-25):
    20 trials in 5.5 minutes on two cores. The best trial has dense layers 192-64, dropout 0.34, no
    augmentation, and all blocks train. Its validation AUC is 0.995. On one half of the official
    test: AUC 0.954 (0.929 to 0.975), accuracy 84.3 %.

Interpretation:
    As expected, AUC on test is clearly below AUC on validation. Trial 0 is the baseline: the
    published head and dropout, with all blocks training.
"""

from optuna import Trial

from pneumo.training.config import RunConfig

BASE = RunConfig(image_size=128, dropout=0.5, dense_widths=(256, 128, 64), epochs=10)


def suggest(trial: Trial, base: RunConfig) -> RunConfig:
    return base.override(
        {
            "dropout": trial.suggest_float("dropout", 0.0, 0.6),
            "dense_widths": (  # 0 is no such layer
                trial.suggest_int("dense_widths_1", 0, 256, step=64),
                trial.suggest_int("dense_widths_2", 0, 128, step=64),
                trial.suggest_int("dense_widths_3", 0, 64, step=64),
            ),
            "augment_strength": trial.suggest_float("augment_strength", 0.0, 1.0, step=0.25),
            "unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, 2),
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        }
    )
