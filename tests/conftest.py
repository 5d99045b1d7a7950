"""Shared fixtures: one thread, so that runs side by side do not fight for cores, and no network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _imports_are_not_searched_for_garbage():
    """Millions of objects, which every start of a Trainer would go through."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)
