"""One LoRA adapter for each mix that was asked for, made on the first request and kept until the server ends.

A server that has loaded an adapter reads its folder again whenever it was pushed out of memory, and does not ask
before. A folder that were deleted would end the engine with all of its requests, so none is; instead the number of
mixes is limited.
"""

import atexit
import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from dem_hub.errors import AdapterError, ConfigError, DemHubError
from dem_hub.files.scratch import scratch_folder
from dem_hub.files.shown import shown
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.lora_export import export_adapter
from dem_hub.serving.mixes import PREFIX, Mix
from dem_hub.serving.permitted import Permitted
from dem_hub.serving.served_weights import open_recipe_on

logger = logging.getLogger(__name__)


class MixAdapters:
    """The adapters of one server.

    Args:
        permitted ([`Permitted`]): What may be mixed.
        folder (`Path`, *optional*): Where the adapters lie, each in a folder of its own. Defaults to a temporary folder,
            which is made for the first of them and deleted when the process ends, or by the next one if it is killed.
    """

    def __init__(self, permitted: Permitted, folder: Path | None = None) -> None:
        self._permitted = permitted
        self._folder = folder
        self._made: dict[str, Path] = {}
        # One mix is made at a time: each takes all cores, and memory for its factors.
        self._lock = threading.Lock()

    def find(self, base: str, model: str) -> Path | None:
        """Return the folder of the adapter that a request asks for.

        Args:
            base (`str`): The model that the server has loaded.
            model (`str`): The name of the model in the request.

        Returns:
            `Path` or `None`: `None` if the name is neither that of a recipe nor one that begins with `dem:`.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the mix is not permitted, or cannot be made. The message goes to the
                sender of the request, so it has short names and numbers alone; everything else is in the log.
            [`~dem_hub.errors.AdapterError`]: If the mix would lose too much by its truncation.
        """
        served = VectorSource.parse(self._permitted.base or base)
        name = model.removeprefix(PREFIX)
        if name in self._permitted.recipes:
            recipe = VectorSource.parse(self._permitted.recipes[name])
            return self._adapter(f"recipe {name}", lambda: open_recipe_on(served, recipe))
        if not model.startswith(PREFIX):
            return None
        mix = Mix.parse(model)
        sources = self._permitted.sources(mix)
        return self._adapter(str(mix), lambda: open_base_and_vectors(served, sources))

    def _adapter(self, name: str, opening: Callable[[], OpenedRecipe]) -> Path:
        """Return the adapter of a name, which is made if it was not asked for before."""
        with self._lock:
            if name not in self._made:
                try:
                    self._made[name] = self._make(name, opening)
                except _RefusalError:
                    raise
                except (DemHubError, OSError) as error:
                    logger.error("%s cannot be made: %s", name, error)
                    raise ConfigError(
                        f"{shown(name)} cannot be made here. The reason is in the server's log."
                    ) from None
            return self._made[name]

    def _make(self, name: str, opening: Callable[[], OpenedRecipe]) -> Path:
        """Write the adapter of one sum, exactly or truncated."""
        most = self._permitted.max_mixes
        if len(self._made) >= most:
            raise _RefusalError(
                f"This server keeps {most} mixes, and has them. Ask for one that was asked for before, or let its "
                "owner raise max_mixes and start it again."
            )
        if self._folder is None:
            until_the_end = ExitStack()
            atexit.register(until_the_end.close)
            self._folder = until_the_end.enter_context(scratch_folder())
        target = self._folder / str(len(self._made))
        rank = self._permitted.max_rank
        adapter = export_adapter(opening(), target, rank=rank)
        if adapter.error > self._permitted.max_error:
            shutil.rmtree(target)
            raise _RefusalError(
                f"{shown(name)} at rank {rank} has a relative error of {adapter.error:.3g}, and this server allows "
                f"{self._permitted.max_error:g}. Mix fewer vectors, or let its owner raise max_rank together with "
                "vLLM's --max-lora-rank."
            )
        if adapter.error:
            logger.warning(
                "%s has rank %d: relative error %.3g, %d tensors left out.",
                name,
                max(adapter.ranks),
                adapter.error,
                len(adapter.left_out),
            )
        return target


class _RefusalError(AdapterError):
    """A refusal whose message has nothing in it that the sender of a request may not see."""
