"""The derivative of a loss after every coefficient, from one backward pass over the merged model.

dL / dc_i = sum over parameters of <dL / d parameter, delta_i of that parameter>. The product is taken when a parameter's gradient is
ready, and the gradient is dropped then, so that one parameter's gradient and delta are all that is held beside the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.architecture import memory_names
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import Delta, inner
from dem_hub.errors import CoefficientError
from dem_hub.evaluation.likelihood import batches, negative_log_likelihood, scored_logits
from dem_hub.evaluation.windows import Window
from dem_hub.merging.groups import take_apart
from dem_hub.numerics.slices import full_index

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel


class CoefficientGradient:
    """Knows which delta belongs to which parameter of a merged model, and to which coefficient: of a vector, or of one of its groups.

    Raises:
        `CoefficientError`: vectors that add rows, or change what is several tensors on disk and one in memory (fused experts).
    """

    def __init__(self, model: "MergedModel", groups: Sequence[Sequence[str]] = ()) -> None:
        opened = model.dem.open()
        self.model, self.base = model, opened.base.checkpoint
        whole = [
            vector.deltas(opened.base, allow_base_mismatch=True) for vector in opened.vectors
        ]  # checked when it was loaded
        vectors: list[Mapping[str, StoredDelta]] = []
        for vector, deltas, own in zip(opened.vectors, whole, groups or ((),) * len(whole), strict=True):
            vectors += take_apart(deltas, own, opened.base, vector.name).values() if own else [deltas]
        self.count = len(vectors)
        names = memory_names(model, self.base)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.deltas: dict[torch.nn.Parameter, tuple[str, list[StoredDelta | None]]] = {}
        wrong = set()
        for key in sorted({key for deltas in vectors for key in deltas}):
            stored = [deltas.get(key) for deltas in vectors]
            if any(delta is not None and delta.replacement is not None for delta in stored):
                continue  # a buffer, which no coefficient scales
            if (
                key not in names
                or names[key] not in parameters
                or any(delta is not None and delta.rows is not None for delta in stored)
            ):
                wrong.add(key)
            else:
                self.deltas.setdefault(parameters[names[key]], (key, stored))
        if wrong:
            raise CoefficientError(
                f"There is no gradient after the coefficients through {', '.join(map(repr, sorted(wrong)[:3]))}: rows that the base lacks, or "
                "several tensors on disk that are one in memory. Use method='gauss_newton'."
            )

    def __call__(self, windows: Sequence[Window], batch_size: int) -> tuple[Tensor, Tensor]:
        """Forward and backward over windows, with the model as it is.

        Returns:
            `tuple[Tensor, Tensor]`: the negative log-likelihood of each window, and the gradient of their sum, (N,), both float64.
        """
        found = torch.zeros(len(windows), dtype=torch.float64)
        gradient = torch.zeros(self.count, dtype=torch.float64)
        with self._hooks(gradient):
            for places in batches(windows, batch_size):
                losses = []
                for scored in scored_logits(self.model, [windows[place] for place in places], len(places)):
                    losses.append(functional.cross_entropy(scored.logits, scored.targets, reduction="sum"))
                    found[places[scored.window]] += negative_log_likelihood(scored)
                if losses:
                    torch.stack(losses).sum().backward()
        return found, gradient

    @contextmanager
    def _hooks(self, gradient: Tensor) -> Iterator[None]:
        """While it lasts, every backward pass adds to `gradient` and leaves none on the parameters."""

        def collect(parameter: Tensor) -> None:
            key, stored = self.deltas[parameter]  # type: ignore[index]  # it is a parameter
            index = full_index(self.base[key].shape)
            lazy = self.base.lazy(key)
            slope = Delta(dense=parameter.grad)
            for place, delta in enumerate(stored):
                for scale, decoded in delta.decode(lazy, index, parameter.device) if delta is not None else ():
                    gradient[place] += scale * inner(slope, decoded)
            parameter.grad = None

        before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        for parameter in before:
            parameter.requires_grad_(parameter in self.deltas)
        handles = [parameter.register_post_accumulate_grad_hook(collect) for parameter in self.deltas]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, wanted in before.items():
                parameter.requires_grad_(wanted)
