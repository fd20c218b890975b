"""How good is a small CNN from scratch that trains in half a minute?

Command   mlflow run . -e train -P experiment=cnn -P data=PATH/xray_dataset.tar.gz
Expected  validation AUC about 0.98
Result    validation AUC 0.991, accuracy 94.9 %, 31 seconds on two cores (2026-11-25)

Every knob is as `RunConfig` has it: start here.
"""

from pneumo.training.config import RunConfig

BASE = RunConfig()
