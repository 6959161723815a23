"""The trials of a search in their order, and the best so far."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.labels import label
from dem_hub.plotting.style import require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture


def draw_trials(
    values: Sequence[float], *, name: str, title: str, higher_is_better: bool = False, theme: Theme = THEME
) -> "Picture":
    """Draw the value of each trial.

    Args:
        values (`Sequence[float]`): The objective or score of each trial, in order; one that is not finite is left out.
        name (`str`): What the values are.
        title (`str`): The title.
        higher_is_better (`bool`, defaults to `False`): Whether the best value is the highest.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from dem_hub.plotting.picture import Picture

    picture = Picture(theme, height=3.6)
    colors = picture.colors
    numbers = []
    finite: list[float] = []
    so_far: list[float] = []
    choose = max if higher_is_better else min
    for place, value in enumerate(values, 1):
        if math.isfinite(value):
            numbers.append(place)
            finite.append(value)
            so_far.append(choose(finite))
    with picture.styled():
        axes = picture.subplots()
        axes.grid(visible=True)
        axes.step(numbers, so_far, where="post", color=colors.result, label="best so far")
        axes.plot(numbers, finite, "o", color=colors.rival, label="trial")
        axes.set_xlim(0.5, len(values) + 0.5)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("trial")
        axes.set_ylabel(label(name, 40))
        axes.set_title(title)
        axes.legend()
    return picture
