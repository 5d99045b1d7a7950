"""One cache for all recipes: they train the same tokenizers on the same text."""

import gc

import pytest


@pytest.fixture(scope="module")
def frozen_garbage():
    # The Trainer collects garbage after each run, and would look at all that the imports have made each time.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes_cache")


@pytest.fixture(autouse=True)
def private_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
