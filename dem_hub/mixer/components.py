"""The components of the page: what a visitor sees and can touch, in Gradio's terms."""

import html
from typing import Any

from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.presets import RECIPE
from dem_hub.mixer.view import STEP, slider_range
from dem_hub.search.held_out import DEM, UNIFORM

# Vectors that can be added while the page is open. A page of Gradio has all its sliders from the beginning.
_SPARE = 8

CHAT = "chat"
COMPLETION = "completion"
PRIVATE = "private"
INCLUDE = "with the vectors that are only on this machine"

_INTRODUCTION = (
    "A mixture is the base, plus each vector times its coefficient. Move the sliders, and read what to expect of the "
    "mixture; then merge it, and ask it something. Its base is"
)

# Gradio divides selectors at every comma, also within `:is(...)`.
CSS = """
table.losses { width: 100%; border: none; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.losses tr, .losses th, .losses td { border: none; }
.losses th, .losses td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--border-color-primary); }
.losses th:first-child { text-align: left; }
#table { overflow-x: auto; }
@media (max-width: 640px) { .losses th, .losses td { padding: 3px; font-size: 11px; } }
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--color-accent); }
input[type=range]::-moz-range-thumb { border: 2px solid var(--color-accent); }
#status { min-height: 48px; }
.losses tbody tr:last-child { font-weight: 600; }
.losses .better { color: #0b7285; }
.losses .worse { color: #c2410c; }
.losses .unsure { color: #c2410c; }
.dark .losses .better { color: #66d9e8; }
.dark .losses .worse, .dark .losses .unsure { color: #fdba74; }
.legend { font-size: 13px; color: var(--body-text-color-subdued); margin: 4px 0; }
figure.landscape { max-width: 420px; margin: 0 auto; }
svg.landscape { width: 100%; display: block; font-size: 12px; }
.landscape text { fill: var(--body-text-color); }
.landscape .trial { fill: #ffffff; stroke: #000000; }
.landscape .found { fill: #ffffff; stroke: #000000; stroke-width: 2; }
.landscape .now { fill: none; stroke: #ff4d4d; stroke-width: 4; }
"""


def compared(label: str) -> str:
    """Return what stands above the answers of what the mixture is compared with."""
    return f"Compared with: {label}"


class Components:
    """The components, made within a `Blocks` of Gradio.

    Args:
        gradio: The module.
        mixer ([`Mixer`]): The mixer.
        is_owner (`bool`): Whether there is what writes, or uses the owner's token: adding, saving and pushing.
    """

    def __init__(self, gradio: Any, mixer: Mixer, *, is_owner: bool) -> None:
        self.gradio = gradio
        self.mixer = mixer
        base = f"<b>{html.escape(mixer.title)}</b>, a {type(mixer.model).__name__}"
        base += f" with {mixer.model.num_parameters() / 1e6:,.1f} million parameters"
        gradio.HTML(f"<h2>The mixer</h2><p>{_INTRODUCTION} {base}.</p>")
        with gradio.Row():
            with gradio.Column(scale=5, min_width=340):
                self._make_sliders()
                if is_owner:
                    self._make_owners_part()
            with gradio.Column(scale=6, min_width=340):
                self._make_losses()
        self._make_panes()

    @property
    def view(self) -> list[Any]:
        """The components that show something of where the sliders stand."""
        return [self.preset, self.table, self.note, self.landscape]

    @property
    def tab(self) -> list[Any]:
        """The components that say where the sliders of a tab stand, in the order of [`Tab.read`]."""
        return [self.kept, self.across, self.up, *self.sliders]

    def _make_sliders(self) -> None:
        gradio = self.gradio
        labels = [preset.label for preset in self.mixer.presets()]
        own = f"{DEM} has what the search found" if self.mixer.prediction else f"{RECIPE} has its own coefficients"
        info = f"{own}, {UNIFORM} equal shares. Empty where the sliders stand at none of them."
        self.preset = gradio.Dropdown(labels, label="Preset", info=info, elem_id="preset")
        lowest, highest = slider_range(self.mixer)
        self.sliders = []
        for number in range(len(self.mixer.names) + _SPARE):
            slider = gradio.Slider(lowest, highest, step=STEP, visible=False, buttons=[], elem_id=f"vector-{number}")
            self.sliders.append(slider)
        names = list(self.mixer.names.values())
        info = "One without a mark is put aside: its coefficient is 0."
        if self.mixer.prediction:
            info += f" {DEM} is then what is best without it."
        self.kept = gradio.CheckboxGroup(
            list(zip(names, range(len(names)), strict=True)),
            label="Vectors in the mixture",
            info=info,
            type="value",
            elem_id="kept",
        )
        self.merge = gradio.Button(self._merge_label, variant="primary", elem_id="merge")
        self.status = gradio.Markdown(self._merge_hint, elem_id="status")

    def _make_owners_part(self) -> None:
        gradio = self.gradio
        with gradio.Accordion("Add a vector", open=False):
            self.added = gradio.Textbox(label="Id on the Hub", placeholder="me/maths-vector", elem_id="added")
            self.add = gradio.Button("Add", elem_id="add")
        with gradio.Accordion("Compare with another model", open=False):
            self.wanted = gradio.Textbox(
                label="Id of a recipe or a model on the Hub, or name of a recipe saved here",
                placeholder="other/their-dem",
                elem_id="wanted",
            )
            self.look_up = gradio.Button("See how much memory it takes", elem_id="look-up")
            self.size = gradio.Markdown(elem_id="size")
            self.load = gradio.Button("Load it", visible=False, elem_id="load")
            # What the button loads: that whose size was said, whatever is typed meanwhile.
            self.looked_up = gradio.State("")
        with gradio.Accordion("Save or push the recipe", open=False):
            self.name = gradio.Textbox(
                label="Name of a folder in that of -o, which is 'mixtures' by default",
                placeholder="my-mixture",
                elem_id="name",
            )
            self.save = gradio.Button("Save", elem_id="save")
            self.repository = gradio.Textbox(label="Repository", placeholder="me/my-mixture", elem_id="repository")
            self.options = gradio.CheckboxGroup([PRIVATE, INCLUDE], value=[PRIVATE], show_label=False)
            self.push = gradio.Button("Push", elem_id="push")

    def _make_losses(self) -> None:
        gradio = self.gradio
        self.table = gradio.HTML(elem_id="table")
        self.note = gradio.Markdown(elem_id="note")
        count = len(self.mixer.prediction.names) if self.mixer.prediction else 0
        choices = list(zip(list(self.mixer.names.values())[:count], range(count), strict=True))
        has_landscape = count > 1
        with gradio.Row(visible=has_landscape):
            self.across = gradio.Dropdown(
                choices, value=0 if has_landscape else None, label="Landscape: to the right", min_width=140
            )
            self.up = gradio.Dropdown(
                choices, value=1 if has_landscape else None, label="Landscape: upwards", min_width=140
            )
        self.landscape = gradio.HTML(visible=has_landscape, elem_id="landscape")

    def _make_panes(self) -> None:
        gradio = self.gradio
        kinds = [CHAT, COMPLETION] if self.mixer.has_template else [COMPLETION]
        with gradio.Row():
            labels = [preset.label for preset in self.mixer.presets()]
            self.other = gradio.Dropdown(labels, value=labels[-1], label="Compared with", elem_id="other")
            self.kind = gradio.Radio(kinds, value=kinds[0], label="How your text is read", elem_id="kind")
            self.max_tokens = gradio.Slider(
                1, 512, value=64, step=1, buttons=[], label="Tokens of an answer, at most", min_width=240
            )
            self.temperature = gradio.Slider(
                0, 2, value=0, step=0.1, buttons=[], label="Temperature (0: likeliest)", min_width=240
            )
        with gradio.Row():
            # Side by side where there is room, and one below the other on a telephone.
            pane = {"height": 320, "render_markdown": False, "buttons": [], "min_width": 320}
            self.left = gradio.Chatbot(label=compared(labels[-1]), elem_id="left", **pane)
            self.right = gradio.Chatbot(label="Your mixture, where the sliders stand", elem_id="right", **pane)
        with gradio.Row():
            self.text = gradio.Textbox(
                placeholder="Ask both", show_label=False, scale=8, lines=1, min_width=320, elem_id="text"
            )
            self.ask = gradio.Button("Ask", variant="primary", scale=1, elem_id="ask")
            self.stop = gradio.Button("Stop", scale=1, elem_id="stop")
            self.clear = gradio.Button("Clear", scale=1, elem_id="clear")
        self.conversations = gradio.State(([], []))

    @property
    def _merge_label(self) -> str:
        return "Merge and measure" if self.mixer.opening.data else "Merge"

    @property
    def _merge_hint(self) -> str:
        text = "Merges where the sliders stand"
        return f"{text}, and measures on the data of --data." if self.mixer.opening.data else f"{text}."
