"""`DEMModel`: from a base and weighted vectors, or a recipe, to a native transformers model, merged while it loads.

transformers' own loader drives: it asks a lazy state dict for each tensor, with the device, dtype and slice it has decided on, so
that device maps, offload, quantisation and sharding work as they do for any model. What the model is not told is that its weights
were a sum. There is no wrapper: `model.dem` remembers the recipe.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from dem_hub.checkpoints.architecture import model_class
from dem_hub.checkpoints.base_model import Base
from dem_hub.defaults import Rounding
from dem_hub.errors import ConfigError
from dem_hub.files.names import GENERATION_CONFIG
from dem_hub.hub.client import HubOptions
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import VectorCoefficients
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.lazy import lazy_state_dict
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from dem_hub.models.attached import AttachedRecipe

if TYPE_CHECKING:
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    class MergedModel(PreTrainedModel):
        """To a type checker only: a model of the base's own class, with its recipe on it."""

        dem: AttachedRecipe


_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that accelerate works out
_HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download")


class DEMModel:
    """Loads distribution-edited models, as `AutoModel` loads others; it is never instantiated."""

    def __init__(self) -> None:
        raise TypeError(
            "DEMModel is made with DEMModel.from_pretrained(...), which returns a native transformers model."
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        vectors: VectorCoefficients | None = None,
        rounding: Rounding | None = None,
        rounding_seed: int | None = None,
        allow_base_mismatch: bool = False,
        **kwargs: Any,
    ) -> "MergedModel":
        """Load base + sum of coefficient * vector, or a recipe.

        Args:
            name_or_path (`str` or `os.PathLike`): Hub id or folder of a base (with `vectors`) or of a recipe (without).
            vectors (`Mapping[str, float]`, *optional*): the coefficient of each vector, by Hub id or folder, or [`VectorSource`]. In the
                place of a number may be one for each group of tensors: `embedding`, `attention`, `mlp`, `other` and the `rest`, or runs
                such as `layers 0-7` (of an encoder-decoder, of both) and the `rest`.
            rounding (`"stochastic"` or `"nearest"`, *optional*): how sums become bf16 or fp16; stochastic unless the recipe says else.
            rounding_seed (`int`, *optional*): of the stochastic rounding; 0 unless the recipe says else.
            allow_base_mismatch (`bool`): put vectors on a base they were not made from, where names and shapes agree.
            kwargs: everything transformers' `from_pretrained` takes, with the same meaning (`dtype`, `device_map`,
                `quantization_config`, `revision`, `token`, `attn_implementation`, `trust_remote_code`, ...).

        Returns:
            `PreTrainedModel`: of the base's own class, with [`AttachedRecipe`] as `model.dem`.

        Raises:
            `NotFoundError`, `ConfigError`, `CheckpointError`, `BaseMismatchError`, `AdapterError`, `CoefficientError`.

        Example:

        ```python
        >>> from dem_hub import DEMModel
        >>> model = DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.5})
        >>> type(model).__name__, list(model.dem.coefficients.values())
        ('LlamaForCausalLM', [0.5])

        ```
        """
        changes = {"rounding": rounding, "rounding_seed": rounding_seed}
        return load(None, name_or_path, kwargs, vectors, changes, allow_base_mismatch=allow_base_mismatch)


def load(
    auto_class: "type[_BaseAutoModelClass] | None",
    name_or_path: str | os.PathLike[str],
    kwargs: dict[str, Any],
    vectors: VectorCoefficients | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    *,
    allow_base_mismatch: bool = False,
) -> "MergedModel":
    """What [`DEMModel.from_pretrained`] does, for the head of any Auto class (`None`: the base's own architecture)."""
    if vectors is not None and not isinstance(vectors, Mapping):
        raise ConfigError(f"vectors is {vectors!r}; give the coefficient of each: vectors={{'maths-vector': 0.5}}.")
    _check_device(kwargs.get("device_map"))
    options = HubOptions(**{name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs})
    source = VectorSource.parse(name_or_path)
    place = {"revision": kwargs.pop("revision", None), "subfolder": kwargs.pop("subfolder", None)}
    source = replace(source, **{name: value for name, value in place.items() if value})
    if vectors is not None:
        opened = open_base_and_vectors(source, vectors, options, check_base=not allow_base_mismatch)
    else:
        opened = open_recipe(source, options, check_base=not allow_base_mismatch)
    recipe = replace(opened.recipe, **{name: value for name, value in changes.items() if value is not None})
    merge = opened.merge(recipe, allow_base_mismatch=allow_base_mismatch)
    model, loading_info, recipe = _from_merge(auto_class, recipe, opened.base, merge, kwargs)
    model.dem = AttachedRecipe(model, recipe, options, allow_base_mismatch=allow_base_mismatch)
    return (model, loading_info) if loading_info is not None else model  # type: ignore[return-value]  # as transformers has it


def _check_device(device_map: Any) -> None:
    """Refuse a device that this machine does not have, before anything is read."""
    if isinstance(device_map, str) and device_map not in _MAPS:
        try:
            torch.empty(0, device=device_map)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"device_map is '{device_map}', which is no device of this machine ({reason}). Leave it out for 'cpu'."
            ) from error


def _from_merge(
    auto_class: "type[_BaseAutoModelClass] | None", recipe: DEMConfig, base: Base, merge: Merge, kwargs: dict[str, Any]
) -> "tuple[MergedModel, dict[str, Any] | None, DEMConfig]":
    """Hand the lazy state dict to transformers' loader; returns the model, its loading info if asked for, and the recipe as loaded."""
    _refuse_other_weights(kwargs)
    trust_remote_code = bool(kwargs.pop("trust_remote_code", False))  # the caller's word; a file's would not count
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    quantization = {name: kwargs.pop(name) for name in ("quantization_config",) if name in kwargs}
    config, unused = kwargs.pop("config", None), kwargs
    if config is None or config.model_type == "dem":  # the recipe's own, where an Auto class has read it already
        config, unused = AutoConfig.from_pretrained(
            base.folder, return_unused_kwargs=True, trust_remote_code=trust_remote_code, **kwargs
        )
    if merge.vocabulary is not None:
        config.get_text_config().vocab_size = merge.vocabulary
    target = _resolve_dtype(dtype, recipe, config, merge)
    if "generation_config" not in unused and (base.folder / GENERATION_CONFIG).is_file():
        unused["generation_config"] = GenerationConfig.from_pretrained(base.folder)
    heads: Any = auto_class._model_mapping if auto_class is not None else None
    chosen = heads[type(config)] if heads is not None else model_class(config, trust_remote_code=trust_remote_code)
    loaded: Any = chosen.from_pretrained(
        None, config=config, state_dict=lazy_state_dict(merge), dtype=target, **quantization, **unused
    )
    model, loading_info = loaded if isinstance(loaded, tuple) else (loaded, None)
    model.name_or_path = model.config.name_or_path = base.source.repo_id
    return (
        model,
        loading_info,
        replace(recipe, dtype=str(target).removeprefix("torch."), architectures=tuple(config.architectures or ())),
    )


def _refuse_other_weights(kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that name weights other than the base's own safetensors, which vectors were not taken from."""
    for name in ("variant", "gguf_file", "state_dict"):
        if kwargs.get(name) is not None:
            raise ConfigError(
                f"{name} is {kwargs[name]!r}; vectors are added to the base's model.safetensors only. Save those weights as a folder of "
                "their own and name it as the base."
            )
    if kwargs.get("use_safetensors") is False:
        raise ConfigError("use_safetensors is False; pickled weights can run code and are never read. Leave it out.")


def _resolve_dtype(
    dtype: str | torch.dtype | None, recipe: DEMConfig, config: PretrainedConfig, merge: Merge
) -> torch.dtype:
    """The caller's dtype, else the recipe's, else the base config's, else that of its first float tensor."""
    if dtype in (None, "auto"):
        dtype = recipe.dtype or config.dtype
    if dtype is None:
        dtype = next(
            (info.torch_dtype for info in merge.base.values() if info.torch_dtype.is_floating_point), torch.float32
        )
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"dtype is {dtype!r}; give 'auto', a torch.dtype, or the name of one.")
    return found
