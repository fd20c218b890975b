"""Code in a model runs if MLflow loads the model, and never in this project."""

from contextlib import suppress
from pathlib import Path

import keras
import mlflow
import pytest

from pneumo.runtime.errors import UserError
from pneumo.tracking import model_files, models
from tests.bad import Case, payloads
from tests.bad import models as bad
from tests.bad.stores import stores
from tests.support.commands import run_here
from tests.support.stores import files_of

pytestmark = pytest.mark.slow

PLANTED = {
    "code": payloads.first_line("pyfunc.py"),
    "bytecode of that age": payloads.beside_its_source(0),
    "bytecode that is never checked": payloads.beside_its_source(1),
}


@pytest.mark.parametrize("what", PLANTED)
def test_files_next_to_a_model_are_not_run(store, tmp_path, what):
    stored = stores(tmp_path)
    PLANTED[what](files_of(tmp_path, stored.trial))
    found = models.find_model(stored.trial)
    assert found.model.keras_model.input_shape == (None, 32, 32, 1)
    assert not Path(payloads.RAN).exists()
    mlflow.pyfunc.load_model(stored.trial)
    assert Path(payloads.RAN).exists()  # else this test could not fail


def test_a_pickle_is_not_opened(store, tmp_path):
    stored = stores(tmp_path)
    payloads.pickled("python_model.pkl")(files_of(tmp_path, stored.foreign))
    with pytest.raises(UserError, match="must be created by pneumo"):
        models.find_model(f"models:/{stored.foreign}")
    assert not Path(payloads.RAN).exists()
    with suppress(Exception):  # what it gives is no model
        mlflow.pyfunc.load_model(f"models:/{stored.foreign}")
    assert Path(payloads.RAN).exists()


def test_a_lambda_would_run_where_keras_is_told_to_trust_it(store, tmp_path):
    stored = stores(tmp_path)
    place = files_of(tmp_path, stored.trial)
    payloads.with_lambda(place)
    Path(payloads.RAN).unlink()
    with pytest.raises(UserError, match="`Lambda` layer"):
        models.find_model(stored.trial)
    assert not Path(payloads.RAN).exists()
    keras.models.load_model(place / "artifacts" / "model.keras", safe_mode=False)
    assert Path(payloads.RAN).exists()


def test_invalid_model_uris(store, tmp_path):
    stored = stores(tmp_path)
    for address in bad.MORE_ADDRESSES:
        case = Case(address, lambda _: [], bad.RULE)
        done = run_here(*bad.predicts(stored, address))
        assert case.verdict(*done) == "", address
    assert store.search_runs(["0"], "tags.`pneumo.kind` = 'predict'") == []


def test_bytecode_as_python_leaves_it_changes_no_digest(store, tmp_path):
    stored = stores(tmp_path)
    place = files_of(tmp_path, stored.version)
    before = model_files.model_digest(place)
    payloads.beside_its_source(0)(place)
    assert model_files.model_digest(place) == before
    for spoil in (payloads.beside_its_source(1), payloads.without_a_source):
        spoil(place)
        changed = model_files.model_digest(place)
        assert changed != before
        before = changed


def test_a_model_that_is_evaluated_leaves_no_copy(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    models.find_model(stores(tmp_path).trial)
    assert not list((tmp_path / "temporary").iterdir())
