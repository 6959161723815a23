"""Python's garbage collections after a pause."""

import gc

import pytest

from dem_hub.numerics.garbage import collections_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_a_pause_of_collections_ends_as_it_began(enabled: bool) -> None:
    """Also after an error; and what the program had switched off stays off."""
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError), collections_paused():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
