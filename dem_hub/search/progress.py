"""The progress of a search, for people: what it will cost, then one bar over all of its passes.

The bar has the step, the remaining time and the best value so far. On a terminal and in a notebook it is tqdm's. Where
stderr is a file, there is a line every half a minute instead. `HF_HUB_DISABLE_PROGRESS_BARS=1` switches it off.

The unit is a token that is run through the model, or a call of a `score`. What comes from a cache advances the bar, but
is not taken for speed.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from dem_hub.evaluation import processes
from dem_hub.hub.foreign_text import printable
from dem_hub.hub.report import wrapped
from dem_hub.search.points import alone, each_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Seconds between two lines in a log file: few enough lines for a search of a night.
_LINE_SECONDS = 30.0

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_LINE = "{desc}: {percentage:.0f} %, {elapsed} passed, about {remaining} left{postfix}"

# The bars of parts of a search, which would be drawn over its own.
_PARTS = "dem_hub"


class Progress:
    """The progress of one search. It shows nothing before and after [`Progress.shown`]."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._opening = ""
        self._costs = ""
        self._pass_size = 1.0
        self._later = 0.0
        self._ran = 0.0  # tokens since the bar was opened
        self._pending = 0.0  # those of them that no measurement has paid for yet
        self._passes = 1  # what a forward pass counts, with the backward pass that follows it
        self._best = ""
        self._began = 0.0
        self._mixtures: dict[tuple[float, ...], int] = {}
        self._slopes = 0

    @contextmanager
    def shown(self, opening: str, costs: str, pass_size: float, later: float) -> Iterator[None]:
        """Show the progress while a search runs in this context.

        Args:
            opening (`str`): What will be done. It is said, with the number of passes, once [`Progress.expect`] tells
                that.
            costs (`str`): What a pass is, and what comes on top of the passes.
            pass_size (`float`): Tokens of a pass.
            later (`float`): Tokens that are expected after the passes.
        """
        from huggingface_hub.utils import are_progress_bars_disabled, tqdm

        if processes.rank() != 0 or are_progress_bars_disabled(_PARTS):
            yield
            return
        self._opening, self._costs, self._pass_size, self._later = opening, costs, pass_size, later
        self._began = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(_without_parts())
            options: dict[str, Any] = {"bar_format": _BAR, "dynamic_ncols": True}
            if not _is_drawn():
                options = {"bar_format": _LINE, "file": _Lines(), "miniters": 0}
                options |= {"mininterval": _LINE_SECONDS, "delay": _LINE_SECONDS}
            self._bar = stack.enter_context(tqdm(total=later or None, desc="Search", **options))
            try:
                yield
                self._bar.total = self._bar.n
            finally:
                stack.close()
                self._bar = None

    def say(self, text: str) -> None:
        """Say a line, above the bar."""
        text = printable(text)
        if self._bar is None:
            logger.info("%s", text)
        elif _is_notebook():
            self._bar.write(text)
        else:
            self._bar.write(wrapped(text), file=sys.stderr)

    def expect(self, passes: float) -> None:
        """Say what the search will cost, the first time; and set the end of the bar that many passes ahead."""
        if self._bar is None:
            return
        if self._opening:
            self.say(f"{self._opening}: at most {passes:g} {self._costs}")
            self._opening = ""
        self._bar.total = self._bar.n + max(passes, 0.0) * self._pass_size + self._later

    def expect_rest(self, done: float = 0.0) -> None:
        """Set the end of the bar where what comes after the passes ends, of which some tokens were `done` before."""
        self._later = max(self._later - done, 0.0)
        self.expect(0)
        self._later = 0.0

    def step(self, name: str) -> None:
        """Name what is done now."""
        self._passes = 1
        if self._bar is not None:
            self._bar.set_description_str(printable(name), refresh=_is_drawn())

    def mixture(self, point: Sequence[float], names: Sequence[str], data: str) -> None:
        """Name the model that is run now, from its coefficients, and its data."""
        point = tuple(point)
        model = "base"
        if point in each_alone(len(point)):
            model = alone(PurePath(names[point.index(1.0)]).name)
        elif any(point):
            model = f"mixture {self._mixtures.setdefault(point, len(self._mixtures) + 1)}"
        self.step(f"{model} on {data}")

    def slopes(self, passes: int = 1) -> None:
        """Name the measurement of slopes; `passes` is what a forward pass counts, with the backward pass after it."""
        place = f"after step {self._slopes}" if self._slopes else "at the first guess"
        self._slopes += 1
        self.step(f"slopes of the losses {place}")
        self._passes = passes

    def best(self, text: str) -> None:
        """Name the best value so far."""
        self._best = f"best {text}"
        self._tell()

    @contextmanager
    def watching(self, model: "PreTrainedModel") -> Iterator[None]:
        """Advance the bar with each forward pass of a model in this context."""
        if self._bar is None:
            yield
            return

        def advance(_: Any, __: Any, inputs: dict[str, Any], ___: Any) -> None:
            tokens = float(inputs["attention_mask"].sum())
            if model.config.is_encoder_decoder:
                tokens += inputs["labels"].numel()
            # Each process runs its own part of the data, and what they run together is counted.
            self.ran(tokens * processes.world_size())

        handle = model.register_forward_hook(advance, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def ran(self, tokens: float) -> None:
        """Advance the bar by what has been run."""
        if self._bar is None:
            return
        tokens *= self._passes
        self._ran += tokens
        self._pending += tokens
        self._tell()
        self._bar.update(tokens)

    def paid(self, tokens: float) -> None:
        """Advance the bar by what was paid for, as far as it was not run but known."""
        known = max(tokens - self._pending, 0.0)
        self._pending = max(self._pending - tokens, 0.0)
        if self._bar is None or not known:
            return
        # tqdm takes what is added to all three for done before it began.
        self._bar.n += known
        self._bar.initial += known
        self._bar.last_print_n += known

    def _tell(self) -> None:
        """Put the seconds of a pass and the best value at the end of the bar."""
        if self._bar is None:
            return
        texts = []
        if self._ran:
            seconds = (time.monotonic() - self._began) / self._ran * self._pass_size
            texts.append(f"{seconds:.3g} s a pass")
        if self._best:
            texts.append(self._best)
        self._bar.set_postfix_str(", ".join(texts), refresh=False)


class _Lines:
    """A stderr that is a file: each state of a bar that is written to it becomes a line of its own."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def _without_parts() -> Iterator[None]:
    """Draw no bars of parts of a search in this context."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield  # the user wants all bars, and huggingface_hub would warn
        return
    disable_progress_bars(_PARTS)
    try:
        yield
    finally:
        enable_progress_bars(_PARTS)


@contextmanager
def plain_loading() -> Iterator[None]:
    """Let no bar be drawn in this context where stderr is a file, which would get its control characters."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    # transformers switches huggingface_hub's bars with its own, which warns where the environment decides.
    is_decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
    if _is_drawn() or is_decided or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _is_notebook() -> bool:
    """Return whether tqdm draws its bars as widgets of a notebook."""
    from huggingface_hub.utils import tqdm

    return any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)


def _is_drawn() -> bool:
    """Return whether a bar is drawn in place, on a terminal or in a notebook."""
    return sys.stderr.isatty() or _is_notebook()
