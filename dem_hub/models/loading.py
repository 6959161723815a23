"""`DEMModel`, which loads a base and weighted vectors, or a recipe, as a native transformers model.

The model is merged while it loads, by transformers' own loader. It asks a lazy state dict for each tensor, with the
device, the dtype and the slice that it has chosen, so device maps, offload, quantization and sharding work as they do
for any model. There is no wrapper: the model is of the base's own class, does not know that its weights were a sum,
and has the recipe as `model.dem`.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from dem_hub.checkpoints.model_building import check_counts
from dem_hub.checkpoints.model_building import model_class as architecture_class
from dem_hub.checkpoints.model_config import read_config
from dem_hub.defaults import VERIFY, Rounding, Verify
from dem_hub.errors import ConfigError
from dem_hub.files.names import GENERATION_CONFIG
from dem_hub.hub.references import VectorSource
from dem_hub.hub.remembered import hashing_again
from dem_hub.merging.base_quantization import BaseQuantization
from dem_hub.merging.coefficients import VectorCoefficients
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.lazy import lazy_state_dict
from dem_hub.merging.merge import Merge
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from dem_hub.models.arguments import LoadArguments
from dem_hub.models.attached import AttachedRecipe
from dem_hub.models.places import Places
from dem_hub.models.vocabulary import set_vocabulary
from dem_hub.numerics.devices import cpu_by_default
from dem_hub.numerics.garbage import collections_paused

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    class MergedModel(PreTrainedModel):
        """A model of the base's own class with its recipe attached; for type checkers only."""

        dem: AttachedRecipe


class DEMModel:
    """Loads distribution-edited models, in the way that `AutoModel` loads others. It cannot be instantiated."""

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
        base_quantized: "str | BaseQuantization | BitsAndBytesConfig | None" = None,
        allow_base_mismatch: bool = False,
        verify: Verify = VERIFY,
        **kwargs: Any,
    ) -> "MergedModel":
        """Load base + sum of coefficient * vector, or a recipe, as a native transformers model.

        The model is merged while it loads: the base is never in memory twice, and no merged file is written.

        Args:
            name_or_path (`str` or `os.PathLike`): Hub id or folder of a base if `vectors` are given, of a recipe if
                not. The base may be a recipe, to which the vectors are added.
            vectors (`Mapping[str, float]`, *optional*): The coefficient of each vector, by the vector's Hub id,
                folder or [`VectorSource`]. A LoRA adapter is a vector too. In place of a number there may be a number
                for each group of tensors: for the kinds `"embedding"`, `"attention"`, `"mlp"` and `"other"`, or for
                runs of layers such as `"layers 0-7"` (of both stacks of an encoder-decoder). `"rest"` stands for all
                tensors that no other group has.
            rounding (`str`, *optional*): How a sum becomes bfloat16 or float16: `"stochastic"`, which keeps small
                changes in the mean, or `"nearest"`, which loses changes of less than half a step. Defaults to the
                recipe's, and to `"stochastic"` without one.
            rounding_seed (`int`, *optional*): Seed of the stochastic rounding. Defaults to the recipe's, and to 0
                without one.
            base_quantized (`str` or `BitsAndBytesConfig`, *optional*): The quantization in which adapters were trained
                on the base (QLoRA): `"nf4"`, `"nf4,double_quant"`, or the config of the training. The vectors are added
                to the base as it was dequantized there. Defaults to the recipe's, and to none without one.
            allow_base_mismatch (`bool`, *optional*, defaults to `False`): Accept a base that the vectors were not
                taken from, if names and shapes of the tensors agree.
            verify (`str`, *optional*, defaults to `"quick"`): `"quick"` believes the hash of a file that was worked out
                before, as long as the file's size, times and inode are the same. `"full"` hashes all files again:
                those of the vectors and of a base in the Hub's cache, and all bytes of a base in a folder, if a vector
                or a recipe has recorded a hash of them.
            kwargs: All arguments of transformers' `from_pretrained`, with the same meaning: `dtype`, `device_map`,
                `quantization_config`, `revision`, `token`, `attn_implementation`, `trust_remote_code` and others.

        Returns:
            `PreTrainedModel`: A model of the base's own class, in evaluation mode, with its recipe as `model.dem`
            ([`AttachedRecipe`]). With `output_loading_info=True` it is a pair of this model and a dictionary, as in
                transformers.

        Raises:
            [`~dem_hub.errors.NotFoundError`]: If the base, a vector or the recipe does not exist.
            [`~dem_hub.errors.ConfigError`]: If an argument or the recipe is not valid.
            [`~dem_hub.errors.CheckpointError`]: If a file is damaged, or the merged weights would not be finite.
            [`~dem_hub.errors.BaseMismatchError`]: If a vector was taken from another base.
            [`~dem_hub.errors.AdapterError`]: If a LoRA adapter cannot be added to this base.
            [`~dem_hub.errors.CoefficientError`]: If a coefficient leaves out tensors that its vector changes.

        Example:

        ```python
        >>> from dem_hub import DEMModel
        >>> model = DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.5}, dtype="bfloat16")
        >>> type(model).__name__, model.dtype, list(model.dem.coefficients.values())
        ('LlamaForCausalLM', torch.bfloat16, [0.5])
        >>> by_group = {vector_folder: {"attention": 0.5, "rest": 0.25}}
        >>> model = DEMModel.from_pretrained(base_folder, vectors=by_group)
        >>> list(model.dem.coefficients.values())
        [{'attention': 0.5, 'rest': 0.25}]

        ```
        """
        with hashing_again(verify):
            model: MergedModel = load(
                None,
                name_or_path,
                kwargs,
                vectors=vectors,
                changes={
                    "rounding": rounding,
                    "rounding_seed": rounding_seed,
                    "base_quantized": base_quantized,
                },
                allow_base_mismatch=allow_base_mismatch,
            )
        return model


# A load makes enough objects for a look through all that torch and transformers have, which takes a third of a second,
# and leaves next to nothing that only this would free.
@collections_paused()
def load(
    wanted: "type[_BaseAutoModelClass] | type[PreTrainedModel] | None",
    name_or_path: str | os.PathLike[str],
    kwargs: Mapping[str, Any],
    *,
    vectors: VectorCoefficients | None = None,
    changes: Mapping[str, Any] | None = None,
    allow_base_mismatch: bool = False,
) -> Any:
    """Load a model as [`DEMModel.from_pretrained`] does, with the head of any Auto class, or of any class.

    Args:
        wanted (`type`, *optional*): For instance `AutoModelForCausalLM`, or `LlamaForSequenceClassification`. `None`
            stands for the base's own architecture.
        name_or_path (`str` or `os.PathLike`): As in [`DEMModel.from_pretrained`].
        kwargs (`Mapping[str, Any]`): The arguments of transformers' `from_pretrained`.
        vectors (`Mapping[str, float]`, *optional*): As in [`DEMModel.from_pretrained`].
        changes (`Mapping[str, Any]`, *optional*): Fields of the recipe to replace; `None` as a value keeps the
            recipe's.
        allow_base_mismatch (`bool`, *optional*, defaults to `False`): As in [`DEMModel.from_pretrained`].

    Returns:
        The model; with `output_loading_info=True` a pair of the model and a dictionary, as in transformers.
    """
    if vectors is not None and not isinstance(vectors, Mapping):
        raise ConfigError(f"vectors is {vectors!r}; give the coefficient of each: vectors={{'maths-vector': 0.5}}.")
    arguments = LoadArguments.split(kwargs)
    source = VectorSource.parse(name_or_path, revision=arguments.revision, subfolder=arguments.subfolder)
    check_base = not allow_base_mismatch
    with cpu_by_default():  # safetensors reads to the default device, which may be any at a caller's
        if vectors is None:
            opened = open_recipe(source, arguments.hub, check_base=check_base)
        else:
            opened = open_base_and_vectors(source, vectors, arguments.hub, check_base=check_base)
        opened = opened.with_changes(changes or {})
        recipe = opened.recipe
        merge = opened.merge(recipe, allow_base_mismatch=allow_base_mismatch)
    generation_config = _generation_config(opened.folder)
    loaded = _from_merge(wanted, opened, recipe, merge, arguments, generation_config)
    opened.check_unchanged()
    model = loaded.model
    # The loader saw no name, because it was given a state dict. Trainer and pipelines show this one.
    name = str(opened.base.source.repo_id)
    model.name_or_path = name
    model.config.name_or_path = name
    model.dem = AttachedRecipe(
        model, loaded.recipe, arguments.hub, loaded.places, allow_base_mismatch=allow_base_mismatch
    )
    if kwargs.get("output_loading_info"):
        return model, loaded.info
    return model


@dataclass(frozen=True)
class _Loaded:
    """A loaded model, transformers' loading info, the recipe with the dtype that was chosen, and where tensors lie."""

    model: "MergedModel"
    info: dict[str, Any]
    recipe: DEMConfig
    places: Places


def _generation_config(folder: Path | None) -> GenerationConfig | None:
    """Return the generation config that lies beside a recipe; `None` if there is none."""
    if folder is None or not (folder / GENERATION_CONFIG).is_file():
        return None
    return GenerationConfig.from_pretrained(folder)


def _from_merge(
    wanted: "type[_BaseAutoModelClass] | type[PreTrainedModel] | None",
    opened: OpenedRecipe,
    recipe: DEMConfig,
    merge: Merge,
    arguments: LoadArguments,
    generation_config: GenerationConfig | None,
) -> _Loaded:
    """Hand the lazy state dict to transformers' loader."""
    folder = opened.base.folder
    check_counts(read_config(folder), len(opened.base.checkpoint), f"config.json of '{folder}'")
    config = arguments.config
    others = dict(arguments.others)
    if not isinstance(config, PretrainedConfig):
        hub = {}
        if config is not None:
            hub = {key: value for key, value in asdict(arguments.hub).items() if value is not None}
        config, others = AutoConfig.from_pretrained(
            folder if config is None else config,
            return_unused_kwargs=True,
            trust_remote_code=arguments.trust_remote_code,
            **hub,
            **others,
        )
    config = deepcopy(config)  # what follows must not change the caller's
    model_class = _class_of(wanted, config, folder, arguments)
    text_config = config.sub_configs.get("text_config")
    if text_config is not None and model_class.config_class == text_config:
        # The language model alone of a model that also reads images, as the Auto classes load it.
        config = config.get_text_config()
    set_vocabulary(config, merge)
    dtype = choose_dtype(arguments, recipe, config, merge)
    if "generation_config" not in others:
        if generation_config is None and (folder / GENERATION_CONFIG).is_file():
            generation_config = GenerationConfig.from_pretrained(folder)
        if generation_config is not None:
            others["generation_config"] = generation_config
    read: set[str] = set()
    loaded, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=lazy_state_dict(merge, read),
        dtype=dtype,
        **{**arguments.for_model, **others, "output_loading_info": True},
    )
    left_out = {name for name, *_ in info.get("mismatched_keys", ())}
    places = Places.of(loaded, merge.base, read, key_mapping=others.get("key_mapping"), left_out=left_out)
    recipe = replace(recipe, dtype=str(dtype).removeprefix("torch."), architectures=tuple(config.architectures or ()))
    return _Loaded(loaded, info, recipe, places)


def _class_of(
    wanted: "type[_BaseAutoModelClass] | type[PreTrainedModel] | None",
    config: PretrainedConfig,
    folder: Path,
    arguments: LoadArguments,
) -> Any:
    """Return the class of the model: the Auto class's for this config, the one that is wanted, or the config's own."""
    if wanted is None:
        return architecture_class(config, folder=folder, trust_remote_code=arguments.trust_remote_code)
    if issubclass(wanted, PreTrainedModel):
        return wanted
    reference = (getattr(config, "auto_map", None) or {}).get(wanted.__name__)
    if reference is not None and arguments.trust_remote_code:
        return get_class_from_dynamic_module(reference, str(folder))
    heads: Any = wanted._model_mapping
    if type(config) not in heads:
        raise ConfigError(
            f"{wanted.__name__} has no model for '{config.model_type}', the base of this recipe. Load it through "
            "another Auto class, or pass trust_remote_code=True if the base has code of its own that you trust."
        )
    head = heads[type(config)]
    if isinstance(head, tuple):  # transformers takes the one that `architectures` names, else the first
        named = [one for one in head if one.__name__ in (config.architectures or ())]
        return (named or head)[0]
    return head


def choose_dtype(arguments: LoadArguments, recipe: DEMConfig, config: PretrainedConfig, merge: Merge) -> torch.dtype:
    """Return the caller's dtype, else the recipe's, else the config's, else that of the first float tensor."""
    dtype = arguments.dtype
    if dtype in (None, "auto") and isinstance(arguments.config, PretrainedConfig):
        # A config that was given for a recipe has the recipe's dtype, or one that the caller has put there.
        dtype = config.dtype
    if dtype in (None, "auto"):
        dtype = recipe.dtype or config.dtype
    if dtype is None:
        dtype = _first_float_dtype(merge)
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype):
        raise ConfigError(f"dtype is {dtype!r}; give 'auto', a torch.dtype, or the name of one.")
    return chosen


def _first_float_dtype(merge: Merge) -> torch.dtype:
    for tensor in merge.base.values():
        if tensor.torch_dtype.is_floating_point:
            return tensor.torch_dtype
    return torch.float32
