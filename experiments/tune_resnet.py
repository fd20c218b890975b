"""Is a large pretrained network worth its cost if its last blocks are unfrozen?

Command:
    mlflow run . -e tune -P experiment=tune_resnet -P data=PATH/xray_dataset.tar.gz

Expected:
    Best validation AUC above 0.994, which tune_mobilenet reaches with a hundredth of the weights.
    Otherwise the cost is wasted.

Result (2026-11-23):
    Not run yet: the ImageNet weights of ResNet50V2 could not be downloaded on the author's machine.

Interpretation:
    None yet. This study is for a GPU: on two cores the forward pass of ResNet50V2 processes about
    12 images per second, so an epoch of the head alone takes seven minutes.
"""

from optuna import Trial

from pneumo.training.config import RunConfig

BASE = RunConfig(
    backbone="resnet50v2",
    weights="imagenet",
    image_size=224,
    dropout=0.25,
    dense_widths=(64,),
    augment_strength=0.25,
    unfreeze_depth=2,
    learning_rate=1e-3,
    epochs=8,
)


def suggest(trial: Trial, base: RunConfig) -> RunConfig:
    return base.override(
        {
            "dropout": trial.suggest_float("dropout", 0.0, 0.6),
            "dense_widths": (  # 0 is no such layer
                trial.suggest_int("dense_widths_1", 0, 512, step=64),
                trial.suggest_int("dense_widths_2", 0, 128, step=32),
            ),
            "augment_strength": trial.suggest_float("augment_strength", 0.0, 1.0, step=0.25),
            "unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, 4),
            "learning_rate": trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
        }
    )
