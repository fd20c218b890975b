"""How good is the published CNN, and what would its preprocessing skew have made of it?

Command:
    mlflow run . -e train -P experiment=published_cnn -P data=PATH/xray_dataset.tar.gz
    -P model_name=published_cnn; then mlflow run . -e evaluate -P preprocessing_skew=true
    -P model=models:/published_cnn@challenger -P data=PATH/xray_dataset.tar.gz

Expected:
    Validation AUC above 0.95. On test the published accuracy, 85.9 %, or less. With the skew
    62.5 %, the accuracy on test if every image is classified as pneumonia.

Result (2026-11-25):
    Validation AUC 0.991, accuracy 94.8 %. On one half of the official test: AUC 0.954 (0.924 to
    0.975), accuracy 83.7 % (79.1 to 88.0). With the skew: AUC 0.462, accuracy 62.5 %, every image
    classified as pneumonia.

Interpretation:
    The second command evaluates the trained model on test twice. One evaluation is this harness's
    own. The other one repeats the error of the published transfer model, which was trained on
    pixels 0-255 and tested on pixels divided by 255. The same weights then do not separate the
    classes.

    Layers, learning rates and epochs are the published ones. These differ:

    - one gray channel instead of three equal ones,
    - one logit instead of two,
    - classes with equal weight,
    - validation by patient,
    - the epoch chosen by validation AUC,
    - rotation by ± 18° (strength 0.5). The published rotation was ± 72°, most likely by mistake
      (0.2 of a full turn).
"""

from pneumo.training.config import RunConfig

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
