"""Predictions in batches."""

import gc
import threading
import time
import weakref

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pneumo.inference.logits import (
    INFERENCE_BATCH_SIZE,
    MAX_INFERENCE_BATCHES,
    predict_in_batches,
    predict_logits,
)


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


def test_memory_is_needed_for_a_few_batches_whatever_the_number_of_cores(monkeypatch):
    monkeypatch.setattr("pneumo.inference.batches.cpu_count", lambda: 8)
    names = set()

    def identity(batch: np.ndarray) -> tf.Tensor:
        names.add(threading.current_thread().name)
        time.sleep(0.02)
        return tf.constant(batch)

    monkeypatch.setattr("pneumo.inference.logits.compile_inference", lambda *_: identity)
    rows = np.zeros((8 * INFERENCE_BATCH_SIZE, 1), np.float32)
    assert np.concatenate(list(predict_in_batches(keras.Model(), rows))).shape == rows.shape
    assert len(names) == MAX_INFERENCE_BATCHES


def test_a_model_is_compiled_once_for_batches_of_any_size_and_can_be_collected():
    calls = []

    class Model(keras.Model):
        def call(self, rows, training=None):
            calls.append(rows.shape)
            return rows

    model = Model()
    for count in (1, INFERENCE_BATCH_SIZE, 2 * INFERENCE_BATCH_SIZE + 5):
        rows = np.arange(count, dtype=np.float32)[:, np.newaxis]
        assert np.array_equal(np.concatenate(list(predict_in_batches(model, rows))), rows)
    assert [tuple(shape) for shape in calls] == [(None, 1)]
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_model_that_only_the_predictions_refer_to_stays_alive():
    class Model(keras.Model):
        def call(self, rows, training=None):
            return rows

    rows = np.arange(INFERENCE_BATCH_SIZE, dtype=np.float32)[:, np.newaxis]
    batches = predict_in_batches(Model(), rows)
    gc.collect()
    assert np.array_equal(np.concatenate(list(batches)), rows)
