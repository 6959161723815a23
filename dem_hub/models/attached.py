"""What a loaded DEM remembers, and how its coefficients are changed in place.

A tensor is merged anew from the base's bytes on disk and copied over the old one, so that a hundred changes leave no trace of each
other; adding differences to the weights in memory would round a hundred times.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dem_hub.checkpoints.architecture import memory_names
from dem_hub.errors import BaseMismatchError, CoefficientError
from dem_hub.hub.client import HubOptions
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import OpenedRecipe, open_config, open_recipe
from dem_hub.numerics.slices import Index, full_index
from dem_hub.numerics.threads import in_order

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel


class AttachedRecipe:
    """The recipe of a loaded model, as `model.dem`.

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
        self, model: "PreTrainedModel", recipe: DEMConfig, options: HubOptions, *, allow_base_mismatch: bool
    ) -> None:
        """Remember where the base and the vectors are; they are opened again when they are needed."""
        self.config = recipe
        self._model, self._options, self._allow_base_mismatch = model, options, allow_base_mismatch
        self._opened: OpenedRecipe | None = None
        self._others: dict[str, OpenedRecipe] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_others": {}}  # open files cannot be copied with the model

    def __repr__(self) -> str:
        terms = "".join(f" + {coefficient} * {name}" for name, coefficient in self.coefficients.items())
        return f"{self.config.base}{terms}"

    @property
    def coefficients(self) -> dict[str, Coefficient]:
        """The coefficient of each vector, by name: a number, or one for each group of its tensors."""
        return self.config.coefficients

    def set_coefficients(self, coefficients: Mapping[str, Coefficient], *, only_changed: bool = False) -> None:
        """Merge again in place, on the devices where the weights are: the same bits as a fresh load there.

        Args:
            coefficients (`Mapping[str, float]`): by vector name; vectors that are not named keep theirs. As in
                [`DEMModel.from_pretrained`], each may be several, by group.
            only_changed (`bool`): leave tensors alone whose coefficients stay; right where nothing else has changed the weights.

        Raises:
            `CoefficientError`: unknown names; a change of the vocabulary's size; weights that are quantised, offloaded or sharded.
            `CheckpointError`: the merge is not finite. The model then has its old coefficients.
        """
        recipe = self.config.with_coefficients(coefficients)
        self._check_in_place()
        self._merge_again(self.open(), recipe, only_changed=only_changed)

    def switch(self, recipe: str | os.PathLike[str] | VectorSource) -> None:
        """Become another recipe over the same base, in place: as a fresh load of it, but in this model's dtype and on its devices.

        The vectors of every recipe that was switched to stay open: compact, and memory-mapped.

        Args:
            recipe (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder.

        Raises:
            `BaseMismatchError`: a recipe over another base. Else as [`AttachedRecipe.set_coefficients`], and what opening it raises.

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
        self._check_in_place()
        here, source = self.open(), VectorSource.parse(recipe)
        if str(source) not in self._others:
            self._others[str(source)] = open_recipe(source, self._options, check_base=not self._allow_base_mismatch)
        there = self._others[str(source)]
        if there.base.fingerprint != here.base.fingerprint:
            raise BaseMismatchError(
                f"The recipe '{source}' is over '{there.base}' (fingerprint {short_hash(there.base.fingerprint)}), and this model over "
                f"'{here.base}' (fingerprint {short_hash(here.base.fingerprint)}). Load it as a model of its own."
            )
        self._merge_again(
            there, replace(there.recipe, dtype=self.config.dtype, architectures=self.config.architectures)
        )
        self._opened = there

    def open(self) -> OpenedRecipe:
        """The base and the vectors on disk, opened when they are first needed."""
        if self._opened is None:
            self._opened = open_config(self.config, self._options, check_base=not self._allow_base_mismatch)
        return self._opened

    def _merge_again(self, opened: OpenedRecipe, recipe: DEMConfig, *, only_changed: bool = False) -> None:
        """Put the sum of a recipe over these vectors in the place of the present one, or leave everything as it is."""
        old = self.open().merge(self.config, allow_base_mismatch=self._allow_base_mismatch)
        new = opened.merge(recipe, allow_base_mismatch=self._allow_base_mismatch)
        names = [name for name in new.base if old.active(name) or new.active(name)]
        if only_changed:
            names = [name for name in names if old.coefficients(name) != new.coefficients(name)]
        for name in names:
            if old.shape(name) != new.shape(name):
                raise CoefficientError(
                    f"These coefficients change '{name}' from {list(old.shape(name))} to {list(new.shape(name))} (a vector with new tokens "
                    "comes or goes). Load the model anew: DEMModel.from_pretrained(...)."
                )
        try:
            _copy(self._model, new, names)
        except BaseException:
            _copy(self._model, old, names)
            raise
        self.config = recipe

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the recipe, not the weights; see [`DEMConfig.save_pretrained`]."""
        self.config.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> "CommitInfo":
        """Push the recipe, not the weights; see [`DEMConfig.push_to_hub`]."""
        return self.config.push_to_hub(repo_id, **options)

    def _check_in_place(self) -> None:
        remedy = "Load it anew with the new coefficients: DEMModel.from_pretrained(base, vectors={...}, ...)."
        quantizer: Any = getattr(self._model, "hf_quantizer", None)
        if quantizer is not None:
            method = quantizer.quantization_config.quant_method
            raise CoefficientError(
                f"This model is quantised ({getattr(method, 'value', method)}); its weights in memory are rounded "
                f"and cannot be merged again in place. {remedy}"
            )
        for name, parameter in self._model.named_parameters():
            if parameter.device.type == "meta":
                raise CoefficientError(f"'{name}' is offloaded, and is not in memory to be merged again. {remedy}")
            if type(parameter.data) is not Tensor:
                raise CoefficientError(f"'{name}' is sharded ({type(parameter.data).__name__}). {remedy}")


@torch.no_grad()
def _copy(model: "PreTrainedModel", merge: Merge, names: Iterable[str]) -> None:
    """Merge tensors and copy them over the model's."""
    from huggingface_hub.utils import tqdm

    places = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    direct = memory_names(model, merge.base)
    wanted = set(names)
    jobs = [
        (name, part, places[direct[name]])
        for name in direct
        if name in wanted
        for part in merge.blocks(name, full_index(merge.shape(name)), places[direct[name]].device)
    ]

    def merged(job: tuple[str, Index, Tensor]) -> Tensor:
        name, part, place = job
        return merge.tensor(name, part, place.device, place.dtype)

    # an accelerator works on one block at a time, and has the memory for it
    on_cpu = all(place.device.type == "cpu" for _, _, place in jobs)
    blocks = in_order(merged, jobs) if on_cpu else map(merged, jobs)
    shown = tqdm(blocks, total=len(jobs), desc="Merging", unit="block", delay=1, leave=False)
    for (_, part, place), values in zip(jobs, shown, strict=True):
        place[part] = values
    for target, values in _converted(model, merge, wanted - set(direct), places):
        places[target].copy_(values)


def _converted(
    model: "PreTrainedModel", merge: Merge, wanted: set[str], places: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are several on disk and one in memory (experts), or the other way round, through the loader's own converters."""
    if not wanted:
        return
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    groups: dict[str, WeightConverter] = {}
    touched: set[str] = set()
    for key in sorted(merge.base, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, places)
        if pattern is None or name not in places:
            continue
        if key in wanted:
            touched.add(name)
        group = groups.setdefault(name, deepcopy(by_pattern[pattern]))
        place = places[name]

        def job(key: str = key, place: Tensor = place) -> Tensor:
            return merge.tensor(key, full_index(merge.shape(key)), place.device, place.dtype)

        group.add_tensor(name, key, pattern, job)  # type: ignore[arg-type]  # it calls what is no future
    for name in touched:
        for target, values in groups[name].convert(name, model=model, config=model.config).items():
            yield target, values[0] if isinstance(values, list) else values
