"""Does the published CNN hold up when validation is cut by patient?

Command   mlflow run . -e train -P experiment=cnn -P data=PATH/xray_dataset.tar.gz
Expected  validation AUC above 0.95; the published validation accuracy was 90.6 %
Result    validation AUC 0.991, accuracy 95.9 % at its best threshold (2026-11-23)

The layers, rates and epochs are the published ones. What differs: one grey channel instead
of three equal ones, one logit instead of two, classes that weigh the same, validation by
patient, the epoch chosen by validation AUC, and rotation by ± 18° (strength 0.5), where ± 72°
was published, most likely by mistake (0.2 of a full turn).
"""

from pneumo.config import RunConfig

BASE = RunConfig(
    image_size=256,
    dropout=0.5,
    dense_widths=(256, 128, 64),
    augment_strength=0.5,
    unfreeze_depth=2,
    learning_rate=1e-3,
    batch_size=32,
    epochs=10,
    patience=3,
)
