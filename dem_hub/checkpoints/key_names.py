"""The names of tensors on disk and in memory: which key of a checkpoint is which parameter of a model.

transformers' own loader is asked. It renames keys of old checkpoints, adds and removes the prefix of the base model,
and puts several tensors together (the experts of a layer). So an old name and a new one of the same tensor have the
same name in memory, and no rule about names is written here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

# The keys of a parameter that is several matrices on disk. Each inner tuple is one part, expert by expert; the
# parts of an expert lie one below the other in the parameter (in `gate_up_proj` the gate is above the up).
Fused = tuple[tuple[str, ...], ...]

# A parameter in memory, and which part and which expert of it; zeros for a parameter that is one tensor on disk too.
Place = tuple[str, int, int]


@dataclass(frozen=True)
class MatchedKeys:
    """Keys of a checkpoint, matched with a model.

    * `names` has the name in memory of each key that is one tensor there.
    * `fused` has the keys of each parameter that is experts' matrices put together.
    * `unused` are keys that the model has no place for.

    Keys that the loader converts in another way are in none of them.
    """

    names: Mapping[str, str]
    fused: Mapping[str, Fused]
    unused: frozenset[str]

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """The place of each key in memory: a parameter, and for experts also the part and the expert."""
        places: dict[str, Place] = {key: (name, 0, 0) for key, name in self.names.items()}
        for name, parts in self.fused.items():
            for part, keys in enumerate(parts):
                for expert, key in enumerate(keys):
                    places[key] = (name, part, expert)
        return places


def match_keys(model: "PreTrainedModel", keys: Iterable[str]) -> MatchedKeys:
    """Match keys on disk with the parameters and buffers of a model.

    Args:
        model (`PreTrainedModel`): The model; its tensors may be on the device `meta`.
        keys (`Iterable[str]`): Names of tensors on disk, of this model or of an older version of it.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names: dict[str, str] = {}
    unused: set[str] = set()
    # The keys of each fused parameter, by the pattern of the converter that they match.
    parts: dict[str, dict[str, list[str]]] = {}
    # The loader puts experts together in this order.
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            # The rules rename this key to nothing that the model has, but the key itself is a name in memory.
            names[key] = key
        elif name in state and pattern is None:
            names[key] = name
        elif name in state and pattern is not None:
            parts.setdefault(name, {}).setdefault(pattern, []).append(key)
        else:
            unused.add(key)
    fused = {}
    for name, keys_by_pattern in parts.items():
        stacked = _stacked(keys_by_pattern, converters)
        if stacked is not None:
            fused[name] = stacked
    return MatchedKeys(names, fused, frozenset(unused))


def ignored_keys(model: "PreTrainedModel", keys: Iterable[str]) -> frozenset[str]:
    """Return the keys on disk that transformers drops without a word when it loads this model.

    Args:
        model (`PreTrainedModel`): The model.
        keys (`Iterable[str]`): Keys that the model has no place for.
    """
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    # transformers adds these two in its loader, for buffers that are not saved any more.
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return frozenset(key for key in keys if any(re.search(pattern, key) for pattern in patterns))


def _stacked(keys_by_pattern: Mapping[str, list[str]], converters: Iterable["WeightConverter"]) -> Fused | None:
    """Return the keys of a fused parameter in the order of its rows.

    It is `None` for a parameter that is not a plain stack, with the same number of experts in each part.
    """
    position: dict[str, int] = {}
    is_stack: dict[str, bool] = {}
    for converter in converters:
        for number, pattern in enumerate(converter.source_patterns):
            position[pattern] = number
            is_stack[pattern] = _stacks(converter)
    counts = {len(keys) for keys in keys_by_pattern.values()}
    if len(counts) != 1 or not all(is_stack[pattern] for pattern in keys_by_pattern):
        return None
    patterns = sorted(keys_by_pattern, key=lambda pattern: position[pattern])
    return tuple(tuple(keys_by_pattern[pattern]) for pattern in patterns)


def _stacks(converter: "WeightConverter") -> bool:
    """Check whether a converter only lays experts next to each other, and their parts one below the other."""
    operations = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    return operations in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])
