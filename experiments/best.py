"""How good a model can a laptop make, chosen by the training images?

Command   mlflow run . -e train -P experiment=best -P data=PATH/xray_dataset.tar.gz
          -P model_name=pneumonia
Expected  on one half of the official test an AUC of 0.985 or more, accuracy 93 % or more, not
          further than 4 points from that on validation
Result

"""

from optuna import Trial

from pneumo.config import RunConfig

BASE = RunConfig(
    backbone="mobilenet",
    alpha=0.25,
    weights="imagenet",
    image_size=160,
    dropout=0.25,
    dense_widths=(),
    augment_strength=0.5,
    crop=0.4,
    mirror="on",
    unfreeze_depth=13,
    learning_rate=1e-3,
    schedule="cosine",
    head_epochs=0,
    fine_tuning_factor=1.0,
    epochs=20,
    patience=20,
    members=2,
    threshold_rule="midpoint",
)


def suggest(trial: Trial, base: RunConfig) -> RunConfig:
    return base.override(
        {
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
            "dense_widths": (  # 0 is no such layer
                trial.suggest_int("dense_widths_1", 0, 128, step=32),
                trial.suggest_int("dense_widths_2", 0, 64, step=32),
            ),
            "augment_strength": trial.suggest_float("augment_strength", 0.0, 1.0, step=0.25),
            "crop": trial.suggest_float("crop", 0.0, 0.6, step=0.2),
            "mirror": trial.suggest_categorical("mirror", ["off", "on"]),
            "unfreeze_depth": trial.suggest_int("unfreeze_depth", 4, 13),
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        }
    )
