"""A tiny model's configuration."""

import pytest

from tests.cli.doctor_runs import TINY, write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Path of its config.json."""
    return str(write(tmp_path_factory.mktemp("tiny"), "config.json", TINY))
