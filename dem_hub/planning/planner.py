"""The planner: what each step takes on every device, from headers and configs.

The arithmetic is that of [`dem_hub.planning.bounds`], and the division among devices is transformers' own. There are no
times: they depend on machines that a plan knows nothing about.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from dem_hub.defaults import SEARCH_DTYPE
from dem_hub.errors import ConfigError
from dem_hub.evaluation.likelihood import windows_at_once
from dem_hub.files.sizes import format_size
from dem_hub.models.arguments import LoadArguments
from dem_hub.models.estimate import rooms
from dem_hub.models.loading import choose_dtype
from dem_hub.models.planned import PlannedModel
from dem_hub.planning.bounds import cache_bytes, in_flight, in_flight_on_accelerator, pass_bytes, streaming_bound
from dem_hub.planning.facts import Facts, pass_shape
from dem_hub.planning.passes import most_forward, most_forward_held_out
from dem_hub.planning.placement import (
    CPU,
    DISK,
    DIVIDED,
    EmptyModel,
    Quantize,
    device_of,
    empty_model,
    is_accelerator,
    merged_config,
)
from dem_hub.planning.step import Need, Step, StepName, Wishes, needs_of, needs_on_disk, on_cpu
from dem_hub.search.measure.loss_evaluator import LOGIT_BYTES
from dem_hub.search.strategies import choose

# The part of a GPU's memory that vLLM takes by default: 0.9, and 0.92 in its newer versions.
SERVED_SHARE = 0.9


@dataclass(frozen=True)
class Planner:
    """Plans the steps of one model.

    Args:
        planned ([`PlannedModel`]): The model, with headers alone if it is on the Hub. A search has a coefficient for each
            of its vectors.
    """

    planned: PlannedModel

    @cached_property
    def facts(self) -> Facts:
        """What the headers say of the model."""
        return Facts.of(self.planned)

    def plan(self, name: StepName, wishes: Wishes) -> Step:
        """Plan one step.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a wish is not one that there is, or names a device without memory.
        """
        place = None if wishes.device_map in DIVIDED else device_of(wishes.device_map)
        if place is not None and place not in wishes.memory:
            raise ConfigError(
                f"The model is to go to '{place}', and there is memory of {', '.join(wishes.memory)} alone. Name that "
                "device's memory too."
            )
        steps = {"load": self._load, "search": self._search, "merge": self._merge, "serve": self._serve}
        return steps[name](wishes)

    def dtype(self, wanted: str | None) -> torch.dtype:
        """Return the dtype that a load chooses."""
        arguments = LoadArguments.split({"dtype": wanted})
        return choose_dtype(arguments, self.planned.opened.recipe, self._config, self.planned.merge)

    def written(self, dtype: str | None) -> PlannedModel:
        """Return the model as it is written in a dtype."""
        if dtype is None:
            return self.planned
        return PlannedModel.of(self.planned.opened, dtype=dtype)

    def _load(self, wishes: Wishes) -> Step:
        dtype = self.dtype(wishes.dtype)
        model = self._model(dtype, wishes.quantize)
        beside = partial(self._in_flight, model)
        limits = _limits(wishes.memory, beside)
        try:
            parts = model.place(wishes.device_map, limits)
        except ConfigError as error:
            return Step("load", refused=str(error))
        notes = [_call(dtype, wishes, limits)]
        if CPU in parts and wishes.accelerators:
            notes.append(f"{format_size(parts[CPU])} stay in the CPU's memory and move to a GPU in each forward pass.")
        if DISK in parts:
            notes.append(f"{format_size(parts[DISK])} are read from the disk in each forward pass: offload_folder=...")
        needs = needs_of(parts, wishes.memory, beside)
        if CPU not in parts:
            needs += on_cpu(self.facts.quantizing, wishes.memory)
        disks = rooms(self.planned, wishes.folder, parts.get(DISK, 0))
        return Step("load", (*needs, *needs_on_disk(disks)), notes=tuple(notes))

    def _search(self, wishes: Wishes) -> Step:
        if wishes.quantize:
            return Step(
                "search", refused="A search changes coefficients in place, which quantised weights do not allow."
            )
        dtype = self.dtype(wishes.dtype or SEARCH_DTYPE)
        shape = pass_shape(self._config, self.planned)
        windows = windows_at_once(wishes.batch_size, wishes.max_length, shape.vocabulary)
        one_pass = pass_bytes(windows * wishes.max_length, dtype.itemsize, shape)
        model = self._model(dtype, None)
        beside = partial(self._beside_search, model, one_pass)
        devices = _searched(wishes)
        parts = model.place(wishes.device_map, _limits(devices, beside))
        needs = needs_of(parts, devices, beside)
        refused = ""
        if DISK in parts:
            refused = f"{format_size(parts[DISK])} would be on the disk, where weights cannot be merged in place."
            # The figures are those of devices that are large enough.
            total = sum(parts.values())
            most = total + sum(map(beside, devices))
            needs = [Need(" + ".join(devices), total, most, sum(devices.values()))]
        if CPU not in devices:
            needs += on_cpu(LOGIT_BYTES + self.facts.quantizing, wishes.memory)
        count = len(self.planned.opened.vectors)
        strategy, _ = choose(wishes.method, count)
        notes = [
            f"dem-hub search ... --device-map {wishes.device_map} --dtype {_name(dtype)} --method {strategy.name}",
            f"A forward pass of {windows} x {wishes.max_length} tokens takes "
            f"about {format_size(one_pass)}, and logits at most {format_size(LOGIT_BYTES)} of the CPU's memory.",
        ]
        if strategy.name == "gradient":
            notes.append("A backward pass also keeps what each layer has computed, which headers do not tell.")
        return Step(
            "search",
            (*needs, *needs_on_disk(rooms(self.planned, wishes.folder, 0))),
            num_forward=most_forward(wishes.method, count, wishes.max_forward),
            num_forward_held_out=most_forward_held_out(count),
            notes=tuple(notes),
            refused=refused,
        )

    def _merge(self, wishes: Wishes) -> Step:
        model = self.written(wishes.dtype)
        disks = rooms(model, wishes.folder, sum(shard.file_size for shard in model.shards))
        in_memory = streaming_bound(self.facts.largest) + self.facts.quantizing
        needs = [*on_cpu(in_memory, wishes.memory), *needs_on_disk(disks)]
        files = "1 file" if len(model.shards) == 1 else f"{len(model.shards)} files"
        return Step("merge", tuple(needs), notes=(f"{files} of weights, {format_size(model.nbytes)} in all.",))

    def _serve(self, wishes: Wishes) -> Step:
        if wishes.quantize:
            return Step("serve", refused="vLLM quantises in its own ways. Plan without --quantize.")
        dtype = self.dtype(wishes.dtype)
        ranks = wishes.accelerators or [CPU]
        heads = int(getattr(self._config.get_text_config(), "num_attention_heads", None) or 0)
        if heads % len(ranks):
            return Step("serve", refused=f"{heads} attention heads cannot be divided among {len(ranks)} devices.")
        model = self._model(dtype, None)
        each = -(-sum(model.sizes().values()) // len(ranks))
        memory = dict(wishes.memory)
        for place in wishes.accelerators:
            memory[place] = int(memory[place] * SERVED_SHARE)
        needs = needs_of(dict.fromkeys(ranks, each), memory, partial(self._in_flight, model))
        notes = [f"vLLM with --dtype {_name(dtype)} and --tensor-parallel-size {len(ranks)}."]
        if wishes.accelerators:
            notes.append(f"Of a GPU vLLM takes {SERVED_SHARE:.0%}. {self._cache_note(dtype, needs)}")
            needs += on_cpu(self.facts.quantizing, wishes.memory)
        return Step("serve", (*needs, *needs_on_disk(rooms(self.planned, wishes.folder, 0))), notes=tuple(notes))

    def _cache_note(self, dtype: torch.dtype, needs: Sequence[Need]) -> str:
        """Say how many tokens the cache of keys and values has room for beside the weights."""
        config = self._config.get_text_config()
        sizes = _cache_sizes(config)
        if sizes is None:
            return f"What a {config.model_type} keeps of each token is not known from its config."
        layers, heads, width = sizes
        token = cache_bytes(layers, heads, width, dtype.itemsize)
        each = token // min(len(needs), heads)
        left = min(need.there - need.keeps for need in needs)
        return (
            f"A token takes {format_size(token)} of cache: at most {max(left, 0) // each:,} tokens beside the weights."
        )

    def _in_flight(self, model: EmptyModel, place: str) -> int:
        """Return what loading needs on a device beside the weights."""
        facts = self.facts
        if not is_accelerator(place):
            return in_flight(facts.largest, facts.vector_bytes) + facts.quantizing
        return in_flight_on_accelerator(facts.largest, facts.vector_bytes, facts.decoded, model.largest_quantized)

    def _beside_search(self, model: EmptyModel, one_pass: int, place: str) -> int:
        """Return what a search needs on a device beside the weights: it loads, then it runs the model."""
        beside = max(self._in_flight(model, place), one_pass)
        return beside + LOGIT_BYTES if place == CPU else beside

    @cached_property
    def _config(self) -> Any:
        return merged_config(self.planned)

    @cached_property
    def _models(self) -> dict[tuple[torch.dtype, Quantize | None], EmptyModel]:
        return {}

    def _model(self, dtype: torch.dtype, quantize: Quantize | None) -> EmptyModel:
        if (dtype, quantize) not in self._models:
            self._models[dtype, quantize] = empty_model(self.planned, dtype, quantize)
        return self._models[dtype, quantize]


def _searched(wishes: Wishes) -> dict[str, int]:
    """Return the devices that a search has its model on: it needs all weights in place, so GPUs do not share with the CPU."""
    if wishes.device_map not in DIVIDED:
        place = device_of(wishes.device_map)
        return {place: wishes.memory[place]}
    return {place: wishes.memory[place] for place in wishes.accelerators} or dict(wishes.memory)


def _limits(memory: Mapping[str, int], beside: Callable[[str], int]) -> dict[str, int]:
    """Return what the weights may fill of each device, so that what is needed beside them has room."""
    return {place: max(0, nbytes - beside(place)) for place, nbytes in memory.items()}


def _call(dtype: torch.dtype, wishes: Wishes, limits: Mapping[str, int]) -> str:
    """Return the call that loads the model as planned."""
    text = f"dtype={_name(dtype)!r}, device_map={wishes.device_map!r}"
    if wishes.device_map in DIVIDED:
        places = [
            f"{place}: {nbytes}" if place.isdigit() else f"{place!r}: {nbytes}" for place, nbytes in limits.items()
        ]
        text += f", max_memory={{{', '.join(places)}}}"
    if wishes.quantize:
        text += f", quantization_config=BitsAndBytesConfig(load_in_{wishes.quantize}=True)"
    return f"DEMModel.from_pretrained(..., {text})"


def _cache_sizes(config: Any) -> tuple[int, int, int] | None:
    """Return the layers, heads and elements of a head whose keys and values are kept of every token.

    `None` if some layers keep something else (a window, a state, a compressed form), or the config does not say it.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or hasattr(config, "kv_lora_rank"):
        return None
    layers = getattr(config, "num_hidden_layers", None)
    queries = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None)
    if not width and queries:
        width = getattr(config, "hidden_size", 0) // queries
    if not (layers and heads and width):
        return None
    return layers, heads, width


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
