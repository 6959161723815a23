"""Two people with clients."""

import pytest
from huggingface_hub import HfApi

from tests.fake_hub.server import Hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """Return Ann's client, with the repository ann/x."""
    api = HfApi(library_name="dem-hub", library_version="1.2.3")
    api.create_repo("ann/x")
    return api


@pytest.fixture
def bob(hub: Hub) -> HfApi:
    """Return the client of another user, Bob."""
    return HfApi(token=hub.add_user("bob").token)
