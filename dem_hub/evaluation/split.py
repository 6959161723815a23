"""The split of windows into two disjoint parts: one to search on, and one to compare the result with baselines on.

Whole documents go to one side, because two pieces of one document are alike, and a search on one would have seen the
other.
"""

from collections.abc import Sequence

import torch

from dem_hub.evaluation.windows import Window


def split(windows: Sequence[Window], share: float, seed: int = 0) -> tuple[list[Window], list[Window]]:
    """Split windows by their documents. The windows of a single document are split into its beginning and its end.

    Args:
        windows (`Sequence[Window]`): The windows of one distribution.
        share (`float`): The fraction of the documents that goes to the second part, 0 to 1. Above 0, both parts get
            at least one document if there are two.
        seed (`int`, *optional*, defaults to 0): Decides which documents.

    Returns:
        `tuple[list[Window], list[Window]]`: The two parts. The second is empty if there is only one window.

    Example:

    ```python
    >>> from dem_hub.evaluation.split import split
    >>> from dem_hub.evaluation.windows import Window
    >>> first, second = split([Window((1, 2), (1, 2), document) for document in range(8)], 0.25)
    >>> len(first), len(second)
    (6, 2)

    ```
    """
    documents = sorted({window.document for window in windows})
    if len(documents) < 2:
        first_count = len(windows) - _second_count(len(windows), share)
        return list(windows[:first_count]), list(windows[first_count:])
    order = torch.randperm(len(documents), generator=torch.Generator("cpu").manual_seed(seed), device="cpu").tolist()
    chosen = {documents[place] for place in order[: _second_count(len(documents), share)]}
    first = [window for window in windows if window.document not in chosen]
    second = [window for window in windows if window.document in chosen]
    return first, second


def _second_count(count: int, share: float) -> int:
    """Return how many of `count` units go to the second part."""
    if not share:
        return 0
    return min(max(1, round(share * count)), count - 1)
