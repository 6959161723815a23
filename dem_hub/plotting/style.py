"""Colors and sizes of all pictures, for light and for dark surroundings.

The colors of things that are told apart are those of Okabe and Ito, which people see apart whatever their sight; no
picture tells two things apart by color alone. Scales of numbers go from dark to light.

Source: Okabe and Ito, Color Universal Design (2008); cividis: Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018.
"""

from dataclasses import dataclass
from typing import Any, get_args

from dem_hub.defaults import Theme
from dem_hub.errors import ConfigError, MissingDependencyError

# Ends and middle of matplotlib's "cividis", from the best to the worst.
SEQUENTIAL = ("#00224e", "#7c7b78", "#fee838")

# Inches. On a slide of 13 inches a picture fills half of the width, and in a README all of it.
WIDTH = 7.2

# Points. At half size, which is 75 dots an inch, the smallest letters are still 9 dots high.
TEXT = 11.0
SMALL = 9.5

DOTS_PER_INCH = 150

# matplotlib's marks, in the order of `Palette.kinds`.
MARKS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Palette:
    """The colors of a theme.

    `result` is for what dem_hub found, `rival` for what it is compared with, and `kinds` for several things of one
    sort. `negative` and `positive` are the ends of a scale whose middle is `background`.
    """

    background: str
    text: str
    muted: str
    grid: str
    result: str
    rival: str
    kinds: tuple[str, ...]
    negative: str
    positive: str


_LIGHT = Palette(
    background="#ffffff",
    text="#1f2328",
    muted="#59636e",
    grid="#dfe3e8",
    result="#0072b2",
    rival="#7d8590",
    kinds=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00"),
    negative="#b35806",
    positive="#0072b2",
)
_DARK = Palette(
    background="#0d1117",  # GitHub's
    text="#e6edf3",
    muted="#9198a1",
    grid="#2a313c",
    result="#56b4e9",
    rival="#8b949e",
    kinds=("#56b4e9", "#e69f00", "#2fbf97", "#cc79a7", "#ffffff", "#f0e442"),
    negative="#e69f00",
    positive="#56b4e9",
)


def palette(theme: Theme) -> Palette:
    """Return the colors of a theme.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there is no such theme.
    """
    if theme not in get_args(Theme):
        raise ConfigError(f"theme is {theme!r}; it must be one of {', '.join(get_args(Theme))}.")
    return _DARK if theme == "dark" else _LIGHT


def settings(colors: Palette) -> dict[str, Any]:
    """Return matplotlib's settings for some colors."""
    return {
        "figure.facecolor": colors.background,
        "figure.constrained_layout.use": True,
        "savefig.dpi": DOTS_PER_INCH,
        "axes.facecolor": colors.background,
        "axes.edgecolor": colors.muted,
        "axes.labelcolor": colors.text,
        "axes.titlecolor": colors.text,
        "axes.titlesize": TEXT,
        "axes.labelsize": TEXT,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.titlesize": TEXT + 1,
        "font.size": TEXT,
        "grid.color": colors.grid,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "text.color": colors.text,
        # Names of strangers are no formulas, whatever is in them.
        "text.parse_math": False,
        "xtick.color": colors.muted,
        "ytick.color": colors.muted,
        "xtick.labelcolor": colors.text,
        "ytick.labelcolor": colors.text,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "lines.linewidth": 1.8,
        "lines.markersize": 6.5,
        # Letters become outlines: the same on every machine, also where the font is missing.
        "svg.fonttype": "path",
        # The same bytes in every run.
        "svg.hashsalt": "dem_hub",
    }


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before the hours of work whose result will be drawn.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "Pictures need matplotlib, which is not installed. Run `pip install 'dem-hub[plot]'`."
        ) from error
