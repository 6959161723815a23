"""`model.dem`: the recipe of a loaded model, and its coefficients changed in place.

A tensor is merged again from the base's bytes on disk and copied over the old one, so any number of changes leaves
the same bits as a fresh load. Adding differences to the weights in memory would round once for each change.

A change touches every tensor that it should, or none: [`Places`] finds all of them first. Changes of one model wait
for each other. A change that fails halfway is undone; if that fails too, `model.dem` says so until a change succeeds.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dem_hub.checkpoints.fingerprint import agree
from dem_hub.errors import BaseMismatchError, CheckpointError, CoefficientError
from dem_hub.hub.client import HubOptions
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.merge import Merge
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_config, open_recipe
from dem_hub.models.places import REMEDY, Places
from dem_hub.models.rewriting import write_merged
from dem_hub.numerics.devices import cpu_by_default

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel


class AttachedRecipe:
    """The recipe of a loaded model, as `model.dem`. `config` is the recipe itself, a [`DEMConfig`].

    All of this may be used from several threads.

    Example:

    ```python
    >>> from dem_hub import DEMModel
    >>> model = DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.5})
    >>> model.dem.set_coefficients({vector_folder: 0.8})
    >>> list(model.dem.coefficients.values())
    [0.8]

    ```
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        recipe: DEMConfig,
        options: HubOptions,
        places: Places,
        *,
        allow_base_mismatch: bool,
    ) -> None:
        """Remember where the base and the vectors are. They are opened again when they are needed."""
        # The model holds this object. If this object held the model, `del model` would free no memory.
        self._reference: Callable[[], PreTrainedModel | None] = weakref.ref(model)
        self._config = recipe
        self._options = options
        self._places = places
        self._allow_base_mismatch = allow_base_mismatch
        self._opened: OpenedRecipe | None = None
        self._switched: dict[VectorSource, tuple[DEMConfig | None, OpenedRecipe]] = {}
        # The tensors that may have values of two recipes: those of a change that runs, or that could not be undone.
        self._mixed: frozenset[str] = frozenset()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # Open files and locks cannot be copied with the model. The copy opens them again.
        state = {**self.__dict__, "_opened": None, "_switched": {}, "_reference": self._reference()}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        model = state["_reference"]
        self._reference = _gone if model is None else weakref.ref(model)

    def __repr__(self) -> str:
        terms = "".join(f" + {coefficient} * {name}" for name, coefficient in self.coefficients.items())
        return f"{self.config.base}{terms}"

    @property
    def config(self) -> DEMConfig:
        """The recipe of the weights. While another thread changes them, this waits for the end of the change."""
        with self._lock:
            if self._mixed:
                raise CoefficientError(
                    f"{len(self._mixed)} tensors of this model are a mixture: a change of the coefficients failed, "
                    "and so did its undoing. Repeat set_coefficients, or load the model anew."
                )
            return self._config

    @property
    def coefficients(self) -> dict[str, Coefficient]:
        """The coefficient of each vector, by its name: a number, or a number for each group of its tensors."""
        return self.config.coefficients

    def set_coefficients(self, coefficients: Mapping[str, Coefficient], *, only_changed: bool = False) -> None:
        """Change coefficients in place: the weights are merged again, on the devices where they are.

        Afterwards the weights have the same bits as those of a fresh load with these coefficients on the same
        devices, no matter how many changes were made before. A change that fails leaves the model with its old
        coefficients. What else was done to weights that a vector changes is overwritten; what was done to the others,
        for instance by training, stays.

        PEFT adapters and `torch.compile` around the model or its modules are followed. A model in which not every
        tensor can be placed is refused, and left as it is. Calls from several threads wait for each other. A forward
        pass or a generation at the same time does not wait: it computes with old and new weights.

        Args:
            coefficients (`Mapping[str, float]`): New coefficients, by the vectors' names in `model.dem.coefficients`.
                A vector that is not named keeps its own. As in [`DEMModel.from_pretrained`], there may be a number
                for each group of tensors.
            only_changed (`bool`, *optional*, defaults to `False`): Merge only tensors whose coefficients change. This
                is quicker, and right if nothing but this method has changed the weights since they were loaded.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If a name is unknown, the size of the vocabulary would change, or
                weights are quantized, offloaded, sharded or replaced and so cannot be merged in place.
            [`~dem_hub.errors.CheckpointError`]: If the merged weights would not be finite.

        Example:

        ```python
        >>> import torch
        >>> from dem_hub import DEMModel
        >>> model = DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.5})
        >>> model.dem.set_coefficients({vector_folder: -1.0})
        >>> model.dem.set_coefficients({vector_folder: 0.8})
        >>> fresh = DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.8})
        >>> all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True))
        True

        ```
        """
        with self._lock, cpu_by_default():
            recipe = self._config.with_coefficients(coefficients)
            self._merge_again(self.open(), recipe, only_changed=only_changed)

    def switch(self, recipe: str | os.PathLike[str] | VectorSource) -> None:
        """Change to another recipe over the same base, in place, in this model's dtype and on its devices.

        Afterwards the weights have the same bits as those of a fresh load of that recipe. The vectors of every recipe
        that was switched to stay open. They are memory-mapped, so this takes little memory. A recipe or a vector in a
        folder that was written anew since is opened again.

        Args:
            recipe (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the recipe.

        Raises:
            [`~dem_hub.errors.BaseMismatchError`]: If the recipe is over another base.
            [`~dem_hub.errors.DemHubError`]: What opening the recipe and [`AttachedRecipe.set_coefficients`] raise.

        Example:

        ```python
        >>> import tempfile
        >>> from dem_hub import DEMModel
        >>> model = DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.5})
        >>> other = tempfile.mkdtemp()
        >>> DEMModel.from_pretrained(base_folder, vectors={vector_folder: -0.25}).dem.save_pretrained(other)
        >>> model.dem.switch(other)
        >>> list(model.dem.coefficients.values())
        [-0.25]

        ```
        """
        with self._lock, cpu_by_default():
            self._whole_model()
            current = self.open()
            source = VectorSource.parse(recipe).absolute
            other = self._open_other(source)
            if not agree(other.base.fingerprint, current.base.fingerprint):
                raise BaseMismatchError(
                    f"The recipe '{source}' is over '{other.base}' (fingerprint "
                    f"{short_hash(other.base.fingerprint)}), and this model over '{current.base}' (fingerprint "
                    f"{short_hash(current.base.fingerprint)}). Load it as a model of its own."
                )
            current_recipe = self._config
            wanted = replace(other.recipe, dtype=current_recipe.dtype, architectures=current_recipe.architectures)
            self._put(other, wanted)

    @contextmanager
    def lent(self, other: OpenedRecipe) -> Iterator[None]:
        """Give the model another recipe over the same base in this context, and its own again afterwards.

        Args:
            other ([`OpenedRecipe`]): The recipe, with this model's dtype, and its vectors.
        """
        own = self.open()
        recipe = self.config
        self._put(other, other.recipe)
        try:
            yield
        finally:
            self._put(own, recipe)

    def open(self) -> OpenedRecipe:
        """Return the base and the vectors on disk, which are opened at the first call."""
        with self._lock:
            if self._opened is None:
                self._opened = open_config(self._config, self._options, check_base=not self._allow_base_mismatch)
            return self._opened

    def _open_other(self, source: VectorSource) -> OpenedRecipe:
        """Return a recipe to switch to, opened again if it says something else than when it was opened, or its files do."""
        now = DEMConfig.from_pretrained(source, **vars(self._options)) if source.is_local else None
        if source in self._switched:
            then, opened = self._switched[source]
            with suppress(CheckpointError):
                opened.check_unchanged()
                if now == then:
                    return opened
        opened = open_recipe(source, self._options, check_base=not self._allow_base_mismatch)
        self._switched[source] = now, opened
        return opened

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, exist_ok: bool = True) -> None:
        """Write the recipe, not the weights; see [`DEMConfig.save_pretrained`]."""
        self.config.save_pretrained(save_directory, exist_ok=exist_ok)

    def push_to_hub(self, repo_id: str, **options: Any) -> "CommitInfo":
        """Push the recipe, not the weights; see [`DEMConfig.push_to_hub`]."""
        return self.config.push_to_hub(repo_id, **options)

    def _put(self, opened: OpenedRecipe, recipe: DEMConfig) -> None:
        """Change to a recipe that is open."""
        with self._lock, cpu_by_default():
            self._merge_again(opened, recipe)
            self._opened = opened

    def _merge_again(self, opened: OpenedRecipe, recipe: DEMConfig, *, only_changed: bool = False) -> None:
        """Replace the weights by the sum of a recipe over these vectors, or leave all of them as they are."""
        model = self._whole_model()
        old = self.open().merge(self._config, allow_base_mismatch=self._allow_base_mismatch)
        new = opened.merge(recipe, allow_base_mismatch=self._allow_base_mismatch)
        names = {name for name in new.base if old.is_changed(name) or new.is_changed(name)}
        if only_changed:
            names = {name for name in names if old.coefficients(name) != new.coefficients(name)}
        names |= self._mixed  # what an earlier change left behind
        _check_shapes(old, new, names)
        found = self._places.find(model, new, names)
        self._mixed = frozenset(names)
        try:
            write_merged(model, self._places, found, new, names)
            opened.check_unchanged()
        except BaseException as error:
            try:
                write_merged(model, self._places, found, old, names)
            except BaseException as second:
                error.add_note(
                    f"The old weights could not be restored either ({second}): {len(names)} tensors are a mixture. "
                    "Repeat set_coefficients, or load the model anew."
                )
                raise error from second
            self._mixed = frozenset()
            raise
        self._config, self._mixed = recipe, frozenset()

    def _whole_model(self) -> "PreTrainedModel":
        """Return the model, unless it is gone or was quantized while it was loaded."""
        model = self._reference()
        if model is None:
            raise CoefficientError("The model of this recipe is not in memory any more. Keep a reference to it.")
        quantizer: Any = getattr(model, "hf_quantizer", None)
        if quantizer is not None:
            method = quantizer.quantization_config.quant_method
            raise CoefficientError(
                f"This model is quantised ({getattr(method, 'value', method)}); its weights in memory are rounded "
                f"and cannot be merged again in place. {REMEDY}"
            )
        return model


def _gone() -> None:
    """Stand for a reference to a model that was not copied along."""


def _check_shapes(old: Merge, new: Merge, names: Iterable[str]) -> None:
    """Refuse a change of the vocabulary's size, which the model in memory cannot follow."""
    for name in sorted(names):
        if old.shape(name) != new.shape(name):
            raise CoefficientError(
                f"These coefficients change '{name}' from {list(old.shape(name))} to {list(new.shape(name))} (a "
                "vector with new tokens comes or goes). Load the model anew: DEMModel.from_pretrained(...)."
            )
