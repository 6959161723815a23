"""A second model, to compare mixtures with: any recipe or model that somebody names.

It takes memory of its own. So this is said first, from headers alone, and it is loaded when somebody then asks for it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError
from dem_hub.files.sizes import format_size
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.merging.short_names import short_names
from dem_hub.mixer.generation import Prompt, answer
from dem_hub.models.named_model import NamedModel
from dem_hub.models.planned import PlannedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class FoundModel:
    """A model that is not loaded yet.

    `weights` are the bytes that it takes in memory, and `downloads` those that are still on the Hub.
    """

    named: NamedModel
    weights: int
    downloads: int

    @classmethod
    def of(cls, source: VectorSource) -> "FoundModel":
        """Find a model or a recipe, without its weights.

        Raises:
            [`~dem_hub.errors.DemHubError`]: If it is neither, or cannot be merged.
        """
        named = NamedModel.find(source, {})
        if named.adapter_or_vector:
            raise ConfigError(f"'{named}' is {named.adapter_or_vector}, and no model. Add it to the mixture instead.")
        _ = named.config  # refuses what transformers does not know
        # A recipe is opened as a base that is merged while it is read, so that this is right for both.
        opened = open_base_and_vectors(named.source, {}, headers_only=True)
        return cls(named, PlannedModel.of(opened).nbytes, sum(remote.nbytes for remote in opened.remotes))

    @property
    def label(self) -> str:
        """What it is called on the page."""
        return short_names([str(self.named)])[0]

    @property
    def cost(self) -> str:
        """What it takes, in words."""
        text = f"{format_size(self.weights)} of memory beside the mixture"
        if self.downloads:
            text += f", and {format_size(self.downloads)} come down first"
        return text

    def load(self, device_map: str | None) -> "OtherModel":
        """Load it, in its own dtype.

        Raises:
            `ConfigError`: It writes no text.
        """
        tokenizer = self.named.tokenizer()
        model = self.named.load(dtype="auto", device_map=device_map)
        if not model.can_generate():
            raise ConfigError(f"'{self.named}' is a {type(model).__name__}, which writes no text. Name another.")
        return OtherModel(self.label, model, tokenizer)


@dataclass(frozen=True)
class OtherModel:
    """The second model. It answers one visitor at a time."""

    label: str
    model: "PreTrainedModel"
    tokenizer: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, prompt: Prompt) -> Iterator[str]:
        """Yield the text of its answer so far, each time there is more of it.

        Raises:
            `ConfigError`: This is a chat, and its tokenizer has no template for one.
        """
        if prompt.is_chat and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(f"'{self.label}' has no chat template. Let both complete your text.")
        return answer(self.model, self.tokenizer, prompt, self._holding)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with self._lock:
            yield
