"""Windows as lists, to compare them."""

from dem_hub.evaluation.windows import Window


def ids(windows: list[Window]) -> list[list[int]]:
    """Return the token ids of windows."""
    return [list(window.input_ids) for window in windows]


def labels(windows: list[Window]) -> list[list[int]]:
    """Return the labels of windows."""
    return [list(window.labels) for window in windows]
