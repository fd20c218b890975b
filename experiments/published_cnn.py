"""What is the published CNN worth, and what would the published mistake have made of it?

Command   mlflow run . -e train -P experiment=published_cnn -P data=PATH/xray_dataset.tar.gz
          -P model_name=published_cnn; then mlflow run . -e evaluate -P preprocessing_skew=true
          -P model=models:/published_cnn@challenger -P data=PATH/xray_dataset.tar.gz
Expected  validation AUC above 0.95; on test the published accuracy, 85.9 %, or less; with the
          mistake 62.5 %, which is what calling everything pneumonia gives there
Result    validation AUC 0.991, accuracy 94.8 %; on one half of the official test AUC 0.954 (0.924
          to 0.975), accuracy 83.7 % (79.1 to 88.0); with the mistake AUC 0.462, accuracy 62.5 %,
          every image called pneumonia (2026-11-25)

The layers, rates and epochs are the published ones. What differs: one grey channel instead
of three equal ones, one logit instead of two, classes that weigh the same, validation by
patient, the epoch chosen by validation AUC, and rotation by ± 18° (strength 0.5), where ± 72°
was published, most likely by mistake (0.2 of a full turn).

The second command evaluates the trained model on test twice: once by this harness, and once as the
published transfer model was: trained on pixels 0-255, scored on pixels divided by 255.
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
