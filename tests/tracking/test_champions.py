"""Which versions have been champion, on a store of versions that have no files."""

import pytest

from pneumo.tracking import registry
from tests.support.decisions import aliases

NAME = "lungs"


@pytest.fixture
def client(store, tmp_path):
    """MLflow's client, of a store with four versions."""
    store.create_registered_model(NAME)
    for _ in range(4):
        store.create_model_version(NAME, str(tmp_path))
    return store


def test_a_champion_is_followed_only_by_who_was_compared_with_it(client):
    assert registry.set_champion(NAME, 1, 0) == 0
    assert registry.set_champion(NAME, 2, 0) == 1  # meanwhile there is one
    assert aliases(client, NAME) == {"champion": 1}
    assert registry.set_champion(NAME, 2, 1) == 1
    assert aliases(client, NAME) == {"champion": 2, "previous": 1}
    assert registry.set_champion(NAME, 3, 1) == 2
    assert aliases(client, NAME) == {"champion": 2, "previous": 1}


def test_who_has_been_champion_stays_known(client):
    assert registry.champions(NAME) == {}
    for number in (3, 1, 4):
        registry.set_champion(NAME, number, registry.version_by_alias(NAME, "champion"))
    assert aliases(client, NAME) == {"champion": 4, "previous": 1}
    found = registry.champions(NAME)
    assert list(found) == [1, 3, 4]
    assert [int(version.version) for version in found.values()] == [1, 3, 4]


def test_champions_without_a_tag_are_known_by_their_aliases_and_tagged(client):
    """As a version of the program has left them that did not tag champions."""
    client.set_registered_model_alias(NAME, "previous", "1")
    client.set_registered_model_alias(NAME, "champion", "2")
    assert list(registry.champions(NAME)) == [1, 2]
    registry.set_champion(NAME, 3, 2)
    assert list(registry.champions(NAME)) == [1, 2, 3]
