"""Windows, and the hash that identifies them."""

from dem_hub.evaluation.windows import NOT_SCORED, Window, hash_windows


def test_hash_tells_ids_and_labels() -> None:
    first = Window((1, 2), (1, 2))
    assert hash_windows([first]) == hash_windows([Window((1, 2), (1, 2), document=7)])
    others = [[first], [Window((1, 2), (NOT_SCORED, 2))], [Window((1, 3), (1, 3))], [first, first]]
    assert len({hash_windows(windows) for windows in others}) == 4
