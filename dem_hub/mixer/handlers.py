"""The handlers of the page's events: what each component asks of the mixer, and what the page then shows.

What only looks (a slider) does not wait for the model; what uses it waits in a queue, one request at a time. An error
is shown as the library words it, without paths and tokens; what nobody expected is logged where the mixer was started.
"""

import html
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from inspect import isgeneratorfunction
from time import monotonic
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from dem_hub.errors import ConfigError, DemHubError
from dem_hub.hub.foreign_text import markdown
from dem_hub.merging.coefficients import Coefficient, level
from dem_hub.mixer.components import CHAT, INCLUDE, PRIVATE, Components, compared
from dem_hub.mixer.generation import Message, Prompt
from dem_hub.mixer.naming import public_text
from dem_hub.mixer.view import DIGITS, Tab, mixture_at, text_of, view_of

logger = logging.getLogger(__name__)

# What answers a prompt, piece by piece.
_Answers = Callable[[Prompt], Iterator[str]]

# The two conversations of a tab: with what is compared, and with the mixture.
_Conversations = tuple[list[Message], list[Message]]


class Handlers:
    """The handlers. Each takes the values of its components; the last ones are those of [`Tab.read`]."""

    def __init__(self, components: Components) -> None:
        self.parts = components
        self.gradio = components.gradio
        self.mixer = components.mixer

    def connect(self, blocks: Any, *, is_owner: bool) -> None:
        """Tell Gradio which handler answers which event."""
        parts = self.parts
        everything = [*parts.sliders, parts.kept, parts.other, *parts.view]
        self._on(blocks.load, self.open_tab, [], everything, "open")
        moves = [slider.input for slider in parts.sliders] + [parts.across.input, parts.up.input]
        looking = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_name": "look"}
        self.gradio.on(moves, self._public(self.look), parts.tab, parts.view, **looking)
        self._on(parts.preset.input, self.take_preset, [parts.preset, *parts.tab], everything, "preset")
        self._on(parts.kept.input, self.keep, parts.tab, everything, "keep")
        self._on(parts.other.change, self.name_other, [parts.other], [parts.left], "name_other")
        self._on(parts.merge.click, self.merge, parts.tab, [parts.status, *parts.view], "merge", is_slow=True)
        asked = [parts.text, parts.kind, parts.max_tokens, parts.temperature, parts.other, parts.conversations]
        panes = [parts.left, parts.right, parts.conversations, parts.text]
        events = []
        for trigger, name in ((parts.ask.click, "ask"), (parts.text.submit, "submit")):
            events.append(self._on(trigger, self.ask, [*asked, *parts.tab], panes, name, is_slow=True))
        parts.stop.click(None, cancels=events, queue=False)
        self._on(parts.clear.click, self.clear, [], panes, "clear")
        if is_owner:
            self._on(
                parts.add.click, self.add, [parts.added, *parts.tab], [parts.status, *everything], "add", is_slow=True
            )
            found = [parts.size, parts.load, parts.looked_up]
            self._on(parts.look_up.click, self.find_other, [parts.wanted], found, "find_other")
            loaded = [parts.status, parts.load, parts.other]
            self._on(
                parts.load.click, self.load_other, [parts.looked_up, *parts.tab], loaded, "load_other", is_slow=True
            )
            self._on(parts.save.click, self.save, [parts.name, *parts.tab], [parts.status], "save")
            pushed = [parts.repository, parts.options, *parts.tab]
            self._on(parts.push.click, self.push, pushed, [parts.status], "push", is_slow=True)

    def open_tab(self) -> list[Any]:
        """Fill a new tab: all vectors, where the first preset has them."""
        mixer = self.mixer
        count = 0 if mixer.prediction is None else len(mixer.prediction.names)
        tab = Tab((), axes=(0, 1) if count > 1 else None)
        return self._everything(mixer.presets()[0].coefficients, tab)

    def look(self, *tab: Any) -> list[Any]:
        """Show what is known of where the sliders stand."""
        return self._view(Tab.read(self.mixer, *tab))

    def take_preset(self, label: str, *tab: Any) -> list[Any]:
        """Move the sliders to a preset."""
        read = Tab.read(self.mixer, *tab)
        return self._everything(self._preset(label, read.aside), read)

    def keep(self, *tab: Any) -> list[Any]:
        """Put vectors aside, or take them back."""
        read = Tab.read(self.mixer, *tab)
        return self._everything(mixture_at(self.mixer, read).coefficients, read)

    def merge(self, *tab: Any) -> list[Any]:
        """Merge, and measure if there is data; the base, too, the first time."""
        mixer = self.mixer
        read = Tab.read(mixer, *tab)
        mixture = mixture_at(mixer, read)
        started = monotonic()
        done = "Merged"
        if mixer.opening.data:
            if not mixer.measured(mixer.base):
                mixer.measure(mixer.base)
            mixer.measure(mixture.coefficients)
            done = "Merged and measured"
        else:
            mixer.merge(mixture.coefficients)
        return [f"{done} in {monotonic() - started:.1f} s: {text_of(mixer, mixture)}", *self._view(read)]

    def ask(
        self,
        text: str,
        kind: str,
        max_tokens: int,
        temperature: float,
        other: str,
        conversations: _Conversations,
        *tab: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield what both panes show, first while one model answers and then the other."""
        if not text:
            raise ConfigError("There is nothing to answer. Write something first.")
        mixer = self.mixer
        read = Tab.read(mixer, *tab)
        asked: list[_Answers] = [
            self._answers_of(other, read.aside),
            partial(mixer.answer, mixture_at(mixer, read).coefficients),
        ]
        said: _Conversations = ([], [])
        for before, now in zip(conversations, said, strict=True):
            if kind == CHAT:
                now += before
            now.append({"role": "user", "content": text})
        for answers, messages in zip(asked, said, strict=True):
            prompt = Prompt(tuple(messages), kind == CHAT, int(max_tokens), temperature)
            messages.append({"role": "assistant", "content": "..."})
            yield *said, said, ""
            for answer in answers(prompt):
                messages[-1] = {"role": "assistant", "content": answer}
                yield *said, said, ""

    def name_other(self, label: str) -> Any:
        """Say above the left pane who answers there."""
        return self.gradio.update(label=compared(label))

    def clear(self) -> tuple[Any, ...]:
        """Forget both conversations."""
        return [], [], ([], []), ""

    def find_other(self, text: str) -> tuple[Any, ...]:
        """Say what a model to compare with takes."""
        found = self.mixer.find_other(text.strip())
        return f"{markdown(found.label)} takes {found.cost}.", self.gradio.update(visible=True), text.strip()

    def load_other(self, text: str, *tab: Any) -> tuple[Any, ...]:
        """Load the model whose size was said, and compare with it."""
        started = monotonic()
        self.mixer.load_other(self.mixer.find_other(text))
        labels = self._compared(Tab.read(self.mixer, *tab).aside)
        done = f"Loaded {markdown(labels[-1])} in {monotonic() - started:.1f} s. Ask both."
        return done, self.gradio.update(visible=False), self.gradio.update(choices=labels, value=labels[-1])

    def add(self, text: str, *tab: Any) -> list[Any]:
        """Take in a vector of the Hub, at 0."""
        mixer = self.mixer
        if len(mixer.names) == len(self.parts.sliders):
            raise ConfigError(f"The page has no room for more than {len(self.parts.sliders)} vectors.")
        coefficients = mixture_at(mixer, Tab.read(mixer, *tab)).coefficients
        number = mixer.add(text)
        kept, *others = tab
        read = Tab.read(mixer, [*kept, number], *others)
        missing = len(mixer.names) - len(coefficients)
        shown = self._everything([*coefficients, *[0.0] * missing], read)
        return [f"Added {markdown(list(mixer.names.values())[number])}, at 0. Move its slider.", *shown]

    def save(self, name: str, *tab: Any) -> str:
        """Save the recipe of the mixture."""
        read = Tab.read(self.mixer, *tab)
        mixture = mixture_at(self.mixer, read)
        saved = self.mixer.save(name, mixture.coefficients, read.aside)
        return f"Saved as {markdown(saved)}: {text_of(self.mixer, mixture)}"

    def push(self, repo_id: str, options: Sequence[str], *tab: Any) -> str:
        """Push the recipe of the mixture."""
        read = Tab.read(self.mixer, *tab)
        coefficients = mixture_at(self.mixer, read).coefficients
        address = self.mixer.push(
            repo_id, coefficients, read.aside, private=PRIVATE in options, include_vectors=INCLUDE in options
        )
        return f"Pushed: {public_text(address)}"

    def _on(
        self,
        trigger: Any,
        handler: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        name: str,
        *,
        is_slow: bool = False,
    ) -> Any:
        """Call a handler at an event. What is slow uses the model."""
        options: dict[str, Any] = {"api_name": name, "queue": False}
        if is_slow:
            options |= {"queue": True, "concurrency_id": "model", "concurrency_limit": 1}
        # One line shows that something is going on, or went wrong. All of the outputs would flicker.
        options["show_progress_on"] = [self.parts.status]
        return trigger(self._public(handler), list(inputs), list(outputs), **options)

    def _public(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler whose errors are shown on the page, without paths and tokens."""

        @contextmanager
        def shown() -> Iterator[None]:
            try:
                yield
            except (DemHubError, HfHubHTTPError, OSError) as error:
                raise self._error(str(error)) from error
            except Exception as error:
                logger.exception("The mixer could not do what the page asked for.")
                kind = type(error).__name__
                text = f"Something unexpected went wrong ({kind}). The terminal of the mixer says more."
                raise self._error(text) from error

        if isgeneratorfunction(handler):

            @wraps(handler)
            def generate(*values: Any) -> Iterator[Any]:
                with shown():
                    yield from handler(*values)

            return generate

        @wraps(handler)
        def call(*values: Any) -> Any:
            with shown():
                return handler(*values)

        return call

    def _error(self, message: str) -> Exception:
        """Return an error whose message Gradio shows; it would show HTML, too."""
        text = html.escape(public_text(message)).replace("\n", "<br>")
        error: Exception = self.gradio.Error(text, print_exception=False)
        return error

    def _preset(self, label: str, aside: Sequence[int]) -> tuple[Coefficient, ...]:
        for preset in self.mixer.presets(aside):
            if preset.label == label:
                return preset.coefficients
        raise ConfigError(f"There is no preset '{label}' without the vectors that are put aside. Choose another.")

    def _answers_of(self, label: str, aside: Sequence[int]) -> _Answers:
        """Return who answers under a label of "Compared with": the second model, or a preset of this one."""
        other = self.mixer.other
        if other is not None and label == _model(other.label):
            return other.answer
        return partial(self.mixer.answer, self._preset(label, aside))

    def _compared(self, aside: Sequence[int]) -> list[str]:
        """Return what mixtures can be compared with; a second model comes last."""
        labels = [preset.label for preset in self.mixer.presets(aside)]
        if self.mixer.other is not None:
            labels.append(_model(self.mixer.other.label))
        return labels

    def _everything(self, coefficients: Sequence[Coefficient], tab: Tab) -> list[Any]:
        """Return all components of a tab whose sliders are moved to these coefficients."""
        update = self.gradio.update
        names = list(self.mixer.names.values())
        levels = tuple(level(value) for value in coefficients)
        kept = [number for number in range(len(names)) if number not in tab.aside]
        sliders = []
        for number in range(len(self.parts.sliders)):
            if number in kept:
                # A slider shows as many digits as its step has. It stands for the exact coefficient: see `mixture_at`.
                sliders.append(update(visible=True, label=names[number], value=round(levels[number], DIGITS)))
            else:
                sliders.append(update(visible=False))
        choices = list(zip(names, range(len(names)), strict=True))
        moved = Tab(levels, tab.aside, tab.axes)
        return [
            *sliders,
            update(choices=choices, value=kept),
            update(choices=self._compared(tab.aside)),
            *self._view(moved),
        ]

    def _view(self, tab: Tab) -> list[Any]:
        view = view_of(self.mixer, tab)
        labels = [preset.label for preset in self.mixer.presets(tab.aside)]
        return [self.gradio.update(choices=labels, value=view.label), view.table, view.note, view.landscape]


def _model(label: str) -> str:
    """Return what the page calls the second model. A preset may have the same name without these words."""
    return f"the model {label}"
