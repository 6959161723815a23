"""`model.dem`: the recipe of a loaded model, and its coefficients changed in place.

A tensor is merged again from the base's bytes on disk and copied over the old one, so any number of changes leaves
the same bits as a fresh load. Adding differences to the weights in memory would round once for each change.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
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

_REMEDY = "Load it anew with the new coefficients: DEMModel.from_pretrained(base, vectors={...}, ...)."


class AttachedRecipe:
    """The recipe of a loaded model, as `model.dem`. `config` is the recipe itself, a [`DEMConfig`].

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
        """Remember where the base and the vectors are. They are opened again when they are needed."""
        self.config = recipe
        self._model = model
        self._options = options
        self._allow_base_mismatch = allow_base_mismatch
        self._opened: OpenedRecipe | None = None
        self._switched: dict[str, OpenedRecipe] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be copied with the model. The copy opens them again.
        return {**self.__dict__, "_opened": None, "_switched": {}}

    def __repr__(self) -> str:
        terms = "".join(f" + {coefficient} * {name}" for name, coefficient in self.coefficients.items())
        return f"{self.config.base}{terms}"

    @property
    def coefficients(self) -> dict[str, Coefficient]:
        """The coefficient of each vector, by its name: a number, or a number for each group of its tensors."""
        return self.config.coefficients

    def set_coefficients(self, coefficients: Mapping[str, Coefficient], *, only_changed: bool = False) -> None:
        """Change coefficients in place: the weights are merged again, on the devices where they are.

        Afterwards the weights have the same bits as those of a fresh load with these coefficients on the same
        devices, no matter how many changes were made before. A change that fails leaves the model with its old
        coefficients.

        Args:
            coefficients (`Mapping[str, float]`): New coefficients, by the vectors' names in `model.dem.coefficients`.
                A vector that is not named keeps its own. As in [`DEMModel.from_pretrained`], there may be a number
                for each group of tensors.
            only_changed (`bool`, *optional*, defaults to `False`): Merge only tensors whose coefficients change. This
                is quicker, and right if nothing but this method has changed the weights since they were loaded.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If a name is unknown, the size of the vocabulary would change, or
                weights are quantized, offloaded or sharded and so cannot be merged in place.
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
        recipe = self.config.with_coefficients(coefficients)
        self._check_in_place()
        self._merge_again(self.open(), recipe, only_changed=only_changed)

    def switch(self, recipe: str | os.PathLike[str] | VectorSource) -> None:
        """Change to another recipe over the same base, in place, in this model's dtype and on its devices.

        Afterwards the weights have the same bits as those of a fresh load of that recipe. The vectors of every recipe
        that was switched to stay open. They are memory-mapped, so this takes little memory.

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
        self._check_in_place()
        current = self.open()
        source = VectorSource.parse(recipe)
        if str(source) not in self._switched:
            self._switched[str(source)] = open_recipe(source, self._options, check_base=not self._allow_base_mismatch)
        other = self._switched[str(source)]
        if other.base.fingerprint != current.base.fingerprint:
            raise BaseMismatchError(
                f"The recipe '{source}' is over '{other.base}' (fingerprint {short_hash(other.base.fingerprint)}), "
                f"and this model over '{current.base}' (fingerprint {short_hash(current.base.fingerprint)}). Load it "
                "as a model of its own."
            )
        self._merge_again(
            other, replace(other.recipe, dtype=self.config.dtype, architectures=self.config.architectures)
        )
        self._opened = other

    def open(self) -> OpenedRecipe:
        """Return the base and the vectors on disk, which are opened at the first call."""
        if self._opened is None:
            self._opened = open_config(self.config, self._options, check_base=not self._allow_base_mismatch)
        return self._opened

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the recipe, not the weights; see [`DEMConfig.save_pretrained`]."""
        self.config.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> "CommitInfo":
        """Push the recipe, not the weights; see [`DEMConfig.push_to_hub`]."""
        return self.config.push_to_hub(repo_id, **options)

    def _merge_again(self, opened: OpenedRecipe, recipe: DEMConfig, *, only_changed: bool = False) -> None:
        """Replace the weights by the sum of a recipe over these vectors, or leave all of them as they are."""
        old = self.open().merge(self.config, allow_base_mismatch=self._allow_base_mismatch)
        new = opened.merge(recipe, allow_base_mismatch=self._allow_base_mismatch)
        names = [name for name in new.base if old.active(name) or new.active(name)]
        if only_changed:
            names = [name for name in names if old.coefficients(name) != new.coefficients(name)]
        _check_shapes(old, new, names)
        try:
            _copy(self._model, new, names)
            opened.check_unchanged()
        except BaseException:
            _copy(self._model, old, names)
            raise
        self.config = recipe

    def _check_in_place(self) -> None:
        """Refuse a model whose weights in memory are not the whole merged tensors."""
        quantizer: Any = getattr(self._model, "hf_quantizer", None)
        if quantizer is not None:
            method = quantizer.quantization_config.quant_method
            raise CoefficientError(
                f"This model is quantised ({getattr(method, 'value', method)}); its weights in memory are rounded "
                f"and cannot be merged again in place. {_REMEDY}"
            )
        for name, parameter in self._model.named_parameters():
            if parameter.device.type == "meta":
                raise CoefficientError(f"'{name}' is offloaded, and is not in memory to be merged again. {_REMEDY}")
            if type(parameter.data) is not Tensor:
                raise CoefficientError(f"'{name}' is sharded ({type(parameter.data).__name__}). {_REMEDY}")


def _check_shapes(old: Merge, new: Merge, names: Iterable[str]) -> None:
    """Refuse a change of the vocabulary's size, which the model in memory cannot follow."""
    for name in names:
        if old.shape(name) != new.shape(name):
            raise CoefficientError(
                f"These coefficients change '{name}' from {list(old.shape(name))} to {list(new.shape(name))} (a "
                "vector with new tokens comes or goes). Load the model anew: DEMModel.from_pretrained(...)."
            )


@dataclass(frozen=True)
class _Job:
    """One block of a tensor on disk, and the model's tensor that it is copied into."""

    name: str
    block: Index
    target: Tensor


@torch.no_grad()
def _copy(model: "PreTrainedModel", merge: Merge, names: Iterable[str]) -> None:
    """Merge the named tensors of the checkpoint and copy them over the model's."""
    from huggingface_hub.utils import tqdm

    targets = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    direct = memory_names(model, merge.base)
    wanted = set(names)
    jobs: list[_Job] = []
    for name, target_name in direct.items():
        if name in wanted:
            target = targets[target_name]
            blocks = merge.blocks(name, full_index(merge.shape(name)), target.device)
            jobs += [_Job(name, block, target) for block in blocks]

    def merged(job: _Job) -> Tensor:
        return merge.tensor(job.name, job.block, job.target.device, job.target.dtype)

    # An accelerator computes one block at a time, and would need memory for each block that waits.
    if all(job.target.device.type == "cpu" for job in jobs):
        results = in_order(merged, jobs)
    else:
        results = map(merged, jobs)
    bar = tqdm(results, total=len(jobs), desc="Merging", unit="block", delay=1, leave=False)
    for job, values in zip(jobs, bar, strict=True):
        job.target[job.block] = values
    for target_name, values in _converted(model, merge, wanted - set(direct), targets):
        targets[target_name].copy_(values)


def _converted(
    model: "PreTrainedModel", merge: Merge, wanted: set[str], targets: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values of the model's tensors that are made of several on disk, such as a mixture's experts.

    They are converted by transformers' own converters, as its loader does. A tensor in memory is made of all its
    tensors on disk, also of those that are not in `wanted`.
    """
    if not wanted:
        return
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern: dict[str, WeightConverter] = {}
    for converter in converters:
        by_pattern.update(dict.fromkeys(converter.source_patterns, converter))
    groups: dict[str, WeightConverter] = {}
    touched: set[str] = set()
    # In the loader's order, which decides the order of the experts.
    for key in sorted(merge.base, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, targets)
        if pattern is None or name not in targets:
            continue
        if key in wanted:
            touched.add(name)
        if name not in groups:
            groups[name] = deepcopy(by_pattern[pattern])
        target = targets[name]
        merged = partial(merge.tensor, key, full_index(merge.shape(key)), target.device, target.dtype)
        # The converter calls what is not a future.
        groups[name].add_tensor(name, key, pattern, merged)  # type: ignore[arg-type]
    for name in touched:
        converted = groups[name].convert(name, model=model, config=model.config)
        for target_name, values in converted.items():
            yield target_name, values[0] if isinstance(values, list) else values
