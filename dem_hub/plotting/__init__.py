"""Pictures: one function a picture, which takes plain numbers and returns a matplotlib figure.

`style.py` has colors and sizes, and `picture.py` the figure that all functions return. matplotlib (extra `plot`) is
imported when a picture is drawn. Whoever has the numbers (a search, a vector, a comparison) has a method `plot`.
"""

from dem_hub.plotting.coefficients import draw_coefficients
from dem_hub.plotting.cosines import draw_cosines
from dem_hub.plotting.estimate import Estimate
from dem_hub.plotting.files import picture_files, save_all
from dem_hub.plotting.front import draw_front
from dem_hub.plotting.landscape import Surface, draw_landscape
from dem_hub.plotting.losses import draw_losses
from dem_hub.plotting.norms import draw_norms
from dem_hub.plotting.perplexities import draw_perplexities
from dem_hub.plotting.style import require_matplotlib
from dem_hub.plotting.trials import draw_trials

__all__ = [
    "Estimate",
    "Surface",
    "draw_coefficients",
    "draw_cosines",
    "draw_front",
    "draw_landscape",
    "draw_losses",
    "draw_norms",
    "draw_perplexities",
    "draw_trials",
    "picture_files",
    "require_matplotlib",
    "save_all",
]
