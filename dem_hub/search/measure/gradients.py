"""The derivative of a loss with respect to every coefficient, from one backward pass through the merged model.

    dL / dc_i = sum over parameters of <dL / d parameter, delta_i of that parameter>

The product is taken in a hook as soon as the gradient of a parameter is ready, and the gradient is dropped there. So
only one parameter's gradient and deltas are in memory beside the model, and the cost does not grow with the number of
coefficients.
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
from dem_hub.evaluation.likelihood import batches, negative_log_likelihood, scored_logits, vocabulary_of
from dem_hub.evaluation.windows import Window
from dem_hub.merging.groups import take_apart
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.numerics.slices import full_index

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

# Names of tensors in a message.
_SHOWN_KEYS = 3


class CoefficientGradient:
    """The deltas of a merged model, by the parameter that each belongs to and the coefficient that scales it.

    Args:
        model (`MergedModel`): A model with its recipe.
        groups (`Sequence[Sequence[str]]`, *optional*): The groups of each vector, if every group has a coefficient.

    Raises:
        [`~dem_hub.errors.CoefficientError`]: If a vector adds rows, or changes tensors that are several on disk and
            one in memory (fused experts).
    """

    def __init__(self, model: "MergedModel", groups: Sequence[Sequence[str]] = ()) -> None:
        opened = model.dem.open()
        self.model = model
        self.base = opened.base.checkpoint
        deltas_by_coefficient = _deltas_by_coefficient(opened, groups)
        self.count = len(deltas_by_coefficient)
        names = memory_names(model, self.base)
        merge = opened.merge(model.dem.config, allow_base_mismatch=True)  # checked when the model was loaded
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.deltas: dict[torch.nn.Parameter, tuple[str, list[StoredDelta | None]]] = {}
        unsupported = []
        for key in sorted(set[str]().union(*deltas_by_coefficient)):
            stored = [deltas.get(key) for deltas in deltas_by_coefficient]
            given = [delta for delta in stored if delta is not None]
            if any(delta.replacement is not None for delta in given):
                # A buffer is replaced, and no coefficient scales it.
                continue
            parameter = parameters.get(names[key]) if key in names else None
            if parameter is None or merge.moved(key) or any(delta.rows is not None for delta in given):
                unsupported.append(key)
            else:
                # Tied weights are one parameter of several names. The first one counts.
                self.deltas.setdefault(parameter, (key, stored))
        if unsupported:
            shown = ", ".join(map(repr, unsupported[:_SHOWN_KEYS]))
            raise CoefficientError(
                f"The gradient does not reach the coefficients through {shown}: "
                "they have rows of new tokens, or are several tensors on disk and one in memory. "
                "Use method='gauss_newton'."
            )

    def __call__(self, windows: Sequence[Window], batch_size: int) -> tuple[Tensor, Tensor]:
        """Run the model, as it is now, forward and backward over windows.

        Returns:
            `tuple[Tensor, Tensor]`: The negative log-likelihood of each window, and the gradient of their sum, (N,),
                both float64.
        """
        window_totals = torch.zeros(len(windows), dtype=torch.float64, device="cpu")
        gradient = torch.zeros(self.count, dtype=torch.float64, device="cpu")
        with self._hooks(gradient):
            for places in batches(windows, batch_size, vocabulary_of(self.model)):
                losses = []
                for scored in scored_logits(self.model, [windows[place] for place in places], len(places)):
                    losses.append(functional.cross_entropy(scored.logits, scored.targets, reduction="sum"))
                    window_totals[places[scored.window]] += negative_log_likelihood(scored)
                if losses:
                    torch.stack(losses).sum().backward()
        return window_totals, gradient

    @contextmanager
    def _hooks(self, gradient: Tensor) -> Iterator[None]:
        """Let every backward pass in this context add to `gradient`, and leave no gradient on the parameters."""

        def collect(parameter: Tensor) -> None:
            key, stored = self.deltas[parameter]  # type: ignore[index]  # torch hands the hook a parameter
            index = full_index(self.base[key].shape)
            lazy = self.base.lazy(key)
            parameter_gradient = Delta(dense=parameter.grad)
            for place, delta in enumerate(stored):
                if delta is None:
                    continue
                for scale, decoded in delta.decode(lazy, index, parameter.device):
                    gradient[place] += scale * inner(parameter_gradient, decoded)
            parameter.grad = None

        required = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        for parameter in required:
            parameter.requires_grad_(parameter in self.deltas)
        handles = [parameter.register_post_accumulate_grad_hook(collect) for parameter in self.deltas]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, was_required in required.items():
                parameter.requires_grad_(was_required)


def _deltas_by_coefficient(opened: OpenedRecipe, groups: Sequence[Sequence[str]]) -> list[Mapping[str, StoredDelta]]:
    """Return the deltas of each coefficient by tensor: those of a vector, or of one of its groups."""
    groups_of_vectors = groups or ((),) * len(opened.vectors)
    parts: list[Mapping[str, StoredDelta]] = []
    for vector, vector_groups in zip(opened.vectors, groups_of_vectors, strict=True):
        # Whether the vector fits the base was checked when the model was loaded.
        deltas = vector.deltas(opened.base, allow_base_mismatch=True)
        if vector_groups:
            parts += take_apart(deltas, vector_groups, opened.base, vector.name).values()
        else:
            parts.append(deltas)
    return parts
