"""Gathering of input statistics: hooks on the layers of a model, while it runs.

    with watching(model, architecture) as watch:
        model(...)
    statistics = watch.statistics(data)

Layers that get the same tensor share its statistics: q, k and v of an attention, gate and up of an MLP. The experts of
a layer, which are one tensor in memory, are watched one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import ConfigError
from dem_hub.evaluation.causality import refuse_two_sided
from dem_hub.evaluation.likelihood import is_seq2seq, likelihood
from dem_hub.evaluation.windows import Window, hash_windows
from dem_hub.input_statistics.sketch import MomentSketch
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Leading eigenvectors of each input. On SmolLM2's demo a sketch of 128 keeps 95 % of RegMean's gain with whole
# matrices, and one of 64 keeps 87 % (benchmarks/README.md, `regmean.py`).
RANK = 128

# The same for one expert of a mixture, which sees a fraction of the tokens. Chosen by hand, not measured.
EXPERT_RANK = 24

# Kinds of modules whose inputs are watched: those that multiply their input by a matrix.
LINEAR = ("linear", "conv1d")

_PRODUCTS = (torch.nn.functional.linear, torch.matmul, Tensor.__matmul__, Tensor.matmul)


class Watch:
    """The inputs of a model's layers, summed up while it runs. Made by [`watching`]."""

    def __init__(self) -> None:
        self.tokens = 0
        self.mask: Tensor | None = None  # (batch, tokens) of the batch that is running: 1 where a token is
        self.sketches: dict[str, MomentSketch] = {}  # by the key of the first layer with that input
        self.leaders: dict[str, str] = {}  # the key whose sketch a key shares
        self._last: tuple[str, Tensor] | None = None  # the layer that ran last, and its input

    def begin(self, mask: Any, shape: Sequence[int]) -> None:
        """Note that a batch of tokens begins, (batch, tokens), with its mask if it has one.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the mask does not tell which tokens are padding.
        """
        if mask is not None and tuple(mask.shape if isinstance(mask, Tensor) else ()) != tuple(shape[:2]):
            kind = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ConfigError(
                f"The attention mask of a batch of {list(shape)} tokens is {kind}, and input statistics need one that "
                "says of each token whether it is padding. Gather them from data instead: dem-hub statistics."
            )
        self.mask = None if mask is None else mask.bool()
        self.tokens += int(self.mask.sum()) if self.mask is not None else shape[0] * shape[1]
        self._last = None

    def see_linear(self, key: str, inputs: Tensor) -> None:
        """Add the inputs of a linear layer, (..., D), unless another layer has just had the same tensor."""
        leader = self.leaders.get(key)
        if leader is None:
            is_shared = self._last is not None and self._last[1] is inputs
            leader = self._last[0] if is_shared and self._last is not None else key
            self.leaders[key] = leader
        if leader == key:
            self.add(key, self._rows(inputs), RANK)
        self._last = (leader, inputs)

    def add(self, key: str, inputs: Tensor, rank: int) -> None:
        """Add inputs, (T, D), to the sketch of a layer."""
        if key not in self.sketches:
            self.sketches[key] = MomentSketch(inputs.shape[1], rank, inputs.device)
        self.sketches[key].add(inputs)
        self.leaders.setdefault(key, key)

    def share(self, keys: Sequence[str], leader: str) -> None:
        """Note layers whose input is that of another one."""
        self.leaders |= dict.fromkeys(keys, leader)

    def statistics(self, data: str) -> InputStatistics:
        """Return what was seen.

        Args:
            data (`str`): A name or hash of the data, to record.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the model did not run.
        """
        if not self.tokens:
            raise ConfigError("There are no input statistics: no token went through the model.")
        inputs = []
        for leader in sorted(set(self.leaders.values())):
            keys = tuple(sorted(key for key, value in self.leaders.items() if value == leader))
            inputs.append(LayerInput(keys, self.sketches[leader].moments(self.tokens)))
        return InputStatistics(tuple(inputs), self.tokens, data)

    def _rows(self, inputs: Tensor) -> Tensor:
        """Return inputs as (T, D), without those of padding."""
        rows = inputs.detach().flatten(0, -2)
        if self.mask is not None and self.mask.numel() == len(rows):
            return rows[self.mask.flatten().to(rows.device)]
        return rows


@contextmanager
def watching(
    model: "PreTrainedModel", architecture: Architecture, entry: torch.nn.Module | None = None
) -> Iterator[Watch]:
    """Sum up the inputs of a model's layers while it runs in this context.

    Args:
        model (`PreTrainedModel`): The model, on any device, in any float dtype, or quantized. Its layers may be
            wrapped by PEFT: what is seen is the input of the wrapper.
        architecture ([`Architecture`]): Its architecture, which names its layers as on disk.
        entry (`torch.nn.Module`, *optional*): The module that is called, if it is another one around the model.
    """
    watch = Watch()
    experts = _ExpertMode(model, architecture, watch)
    with ExitStack() as stack:
        called = model if entry is None else entry
        stack.callback(called.register_forward_pre_hook(_batch_hook(watch), with_kwargs=True).remove)
        for key, module in architecture.modules.items():
            if module.kind in LINEAR:
                layer = model.get_submodule(module.name)
                stack.callback(layer.register_forward_pre_hook(_linear_hook(watch, key)).remove)
        stack.enter_context(experts.one_by_one())
        yield watch


def gather(
    model: "PreTrainedModel",
    architecture: Architecture,
    windows: Sequence[Window],
    batch_size: int = BATCH_SIZE,
    *,
    base_loss: float | None = None,
) -> InputStatistics:
    """Run a model over windows, and return the statistics of its layers' inputs.

    Args:
        model (`PreTrainedModel`): The model.
        architecture ([`Architecture`]): Its architecture.
        windows (`Sequence[Window]`): Tokens, all of which count, scored or not.
        batch_size (`int`, *optional*, defaults to 8): Windows in one forward pass.
        base_loss (`float`, *optional*): The base's loss of a token of the windows. The statistics then have the gain.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If no window has a token that is predicted, or the model does not predict the
            next token.
    """
    # This runs a model that is not known to be causal. The statistics are to be of the windows alone.
    refuse_two_sided(model, windows)
    # An encoder's and a decoder's padding are not told apart by their shapes. One window has none.
    size = 1 if is_seq2seq(model) else batch_size
    with watching(model, architecture) as watch:
        loss = likelihood(model, windows, size).loss
    gain = None if base_loss is None else base_loss - loss
    return replace(watch.statistics(hash_windows(windows)), gain=gain)


def _batch_hook(watch: Watch) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ConfigError("Input statistics need `input_ids`, and this forward pass has none.")
        watch.begin(kwargs.get("attention_mask"), ids.shape)

    return hook


def _linear_hook(watch: Watch, key: str) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        watch.see_linear(key, args[0])

    return hook


class _ExpertMode(TorchFunctionMode):
    """Sees the products of inputs with the matrices of experts, which are slices of one parameter.

    transformers multiplies them one by one in its `eager` implementation: `linear(states[tokens], parameter[expert])`,
    and then the result in the same order of tokens.
    """

    def __init__(self, model: "PreTrainedModel", architecture: Architecture, watch: Watch) -> None:
        super().__init__()
        self._model = model
        self._fused = architecture.fused
        self._watch = watch
        self._names = {id(model.get_parameter(name)): name for name in architecture.fused}
        self._taken: tuple[Any, str, int] | None = None  # the matrix that was taken last, its parameter and expert
        self._tokens: Tensor | None = None  # the numbers of the tokens that were taken last

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Let the model multiply expert by expert, and watch it."""
        if not self._fused:
            yield
            return
        implementation = self._model.config._experts_implementation
        self._model.set_experts_implementation("eager")
        try:
            with self:
                yield
        finally:
            self._model.set_experts_implementation(implementation)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation of torch, and note what it is about."""
        if func in _PRODUCTS:
            self._look(args[0], args[1])
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            if id(args[0]) in self._names:
                self._taken = (result, self._names[id(args[0])], int(args[1]))
            elif isinstance(args[1], Tensor) and args[1].dim() == 1:
                self._tokens = args[1]
        return result

    def _look(self, inputs: Tensor, matrix: Any) -> None:
        """Add the inputs of an expert's matrix, without those of padding."""
        if self._taken is None or self._taken[0] is not matrix:
            return
        _, name, expert = self._taken
        rows = inputs.detach()
        mask = self._watch.mask
        if mask is not None and self._tokens is not None and len(self._tokens) == len(rows):
            rows = rows[mask.flatten().to(rows.device)[self._tokens]]
        keys = [part[expert] for part in self._fused[name]]
        if len(rows):
            self._watch.add(keys[0], rows, EXPERT_RANK)
            self._watch.share(keys, keys[0])
