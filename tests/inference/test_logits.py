"""Predictions in batches."""

import keras
import numpy as np
from keras import layers

from pneumo.inference.logits import INFERENCE_BATCH_SIZE, predict_in_batches, predict_logits


def test_predictions_have_the_order_of_the_inputs():
    inputs = keras.Input((1,))
    double = layers.Rescaling(2.0)(inputs)
    rows = np.arange(4 * INFERENCE_BATCH_SIZE + 3, dtype=np.float32)[:, np.newaxis]
    model = keras.Model(inputs, double)
    assert predict_logits(model, rows).tolist() == (2 * rows[:, 0]).tolist()
    sizes = [len(batch) for batch in predict_in_batches(model, rows)]
    assert sizes == [*[INFERENCE_BATCH_SIZE] * 4, 3]
    both = list(predict_in_batches(keras.Model(inputs, [double, inputs]), rows))
    assert np.concatenate([second for _, second in both]).tolist() == rows.tolist()
    assert np.concatenate([first for first, _ in both]).tolist() == (2 * rows).tolist()
