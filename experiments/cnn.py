"""How good is a small CNN from scratch that trains in a minute?

Command   mlflow run . -e train -P experiment=cnn -P data=PATH/xray_dataset.tar.gz
Expected  validation AUC about 0.98
Result

Every knob is as `RunConfig` has it: start here.
"""

from pneumo.config import RunConfig

BASE = RunConfig()
