"""Fine-tunes that the tests of the search share."""

import pytest
from counters import Counters, make_counters


@pytest.fixture(scope="session")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Made once."""
    return make_counters(tmp_path_factory.mktemp("counters"))


@pytest.fixture(scope="session")
def gentle(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Trained so briefly that the kept logits tell the whole truth."""
    return make_counters(tmp_path_factory.mktemp("gentle"), steps=8, learning_rate=4e-4)
