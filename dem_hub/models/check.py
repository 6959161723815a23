"""The check that a merge still has what a fine-tune learnt: its predictions on data beside the fine-tune's own.

Three models are run, one after the other: the fine-tune as it is (or the base with the adapter unmerged, by PEFT), the
base, and the merge in the dtype and quantization in which it will be served. The fine-tune's predictions are kept on
the disk meanwhile, so that no two models are in memory.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH
from dem_hub.errors import AdapterError, ConfigError, DiskSpaceError
from dem_hub.evaluation.columns import select_columns
from dem_hub.evaluation.divergence import Compared, compare, keep_predictions, kept_bytes
from dem_hub.evaluation.likelihood import scored_tokens
from dem_hub.evaluation.rows import check_files
from dem_hub.evaluation.windows import Window
from dem_hub.files.folders import ADAPTER
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dem_hub.files.scratch import scratch_folder
from dem_hub.files.sizes import format_size
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.base_quantization import BaseQuantization
from dem_hub.models.comparable import base_of, check_comparable, read_for_both, vocabulary
from dem_hub.models.measurable import hub_options
from dem_hub.models.named_model import NamedModel
from dem_hub.models.verdict import DataCheck

logger = logging.getLogger(__name__)

# Arguments of `from_pretrained` that say in what form the merge is served. The others are as they are.
_OF_THE_MERGE = ("dtype", "quantization_config")


@dataclass(frozen=True)
class PlannedCheck:
    """A check whose models were found and whose data were read. No weights are loaded yet.

    `windows` are those of each dataset, and `served` are the arguments of `from_pretrained` with which the merge is
    served. `quantization` is that of the base below an adapter.
    """

    merged: NamedModel
    finetuned: NamedModel
    base: NamedModel
    windows: Mapping[str, Sequence[Window]]
    served: Mapping[str, Any]
    batch_size: int
    quantization: BaseQuantization | None = None

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] | VectorSource,
        against: str | os.PathLike[str] | VectorSource,
        datasets: Mapping[str, Any],
        *,
        base: str | os.PathLike[str] | VectorSource | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        batch_size: int = BATCH_SIZE,
        max_length: int = MAX_LENGTH,
        **kwargs: Any,
    ) -> "PlannedCheck":
        """Find the models and read the data; the arguments are those of [`check_merge`]."""
        served = {name: kwargs.pop(name) for name in _OF_THE_MERGE if name in kwargs}
        base_quantized = kwargs.pop("base_quantized", None)
        if not datasets:
            raise ConfigError("There is no data to compare the models on; give some of what the fine-tune is for.")
        selected = select_columns(datasets, columns)
        check_files(selected)
        merged = NamedModel.find(model, kwargs)
        if merged.adapter_or_vector:
            raise ConfigError(
                f"'{merged}' is {merged.adapter_or_vector}, and no model that is served. Name a merged model or a "
                "recipe, and the adapter as what it is compared with."
            )
        finetuned = NamedModel.find(against, kwargs)
        if finetuned.adapter_or_vector not in ("", ADAPTER):
            raise ConfigError(
                f"'{finetuned}' is {finetuned.adapter_or_vector}, which its codec may have rounded. Name the fine-tune "
                "itself, or its LoRA adapter."
            )
        found = NamedModel.find(base_of(merged, finetuned) if base is None else base, kwargs)
        check_comparable(merged, finetuned, found)
        windows = read_for_both(selected, merged, finetuned, found, max_length)
        quantization = _quantization_of(base_quantized, merged, finetuned)
        return cls(merged, finetuned, found, windows, {"dtype": "auto", **served}, batch_size, quantization)

    @cached_property
    def tokens(self) -> int:
        """The number of scored tokens."""
        return sum(sum(self._counts(windows)) for windows in self.windows.values())

    @property
    def kept_bytes(self) -> int:
        """The bytes of the fine-tune's predictions on the disk."""
        return kept_bytes(self.tokens, vocabulary(self.base))

    @property
    def cost(self) -> str:
        """What the check will take, in one line."""
        return (
            f"3 models one after the other, each over {self.tokens} scored tokens; {format_size(self.kept_bytes)} of "
            f"predictions in the temporary folder meanwhile"
        )

    def run(self) -> dict[str, DataCheck]:
        """Run the models; see [`check_merge`].

        Raises:
            [`~dem_hub.errors.DiskSpaceError`]: If there is no room for the fine-tune's predictions.
            [`~dem_hub.errors.ConfigError`]: If PEFT cannot load the adapter, the models predict other numbers of
                tokens, or a loss is not finite.
        """
        with scratch_folder() as folder:
            self._check_room(folder)
            finetuned = self._finetuned_losses(folder)
            _give_memory_back()
            base = self._compare(self.base.load(dtype="auto"), folder)
            _give_memory_back()
            merged = self._compare(self.merged.load(**self.served), folder)
        checks = {}
        for name, windows in self.windows.items():
            _refuse_not_finite(name, finetuned[name], base[name].losses, merged[name].losses)
            checks[name] = DataCheck.of(windows, self._counts(windows), finetuned[name], base[name], merged[name])
        return checks

    def _counts(self, windows: Sequence[Window]) -> list[int]:
        return scored_tokens(windows, seq2seq=bool(self.base.config.is_encoder_decoder))

    def _check_room(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if self.kept_bytes > free:
            raise DiskSpaceError(
                f"The fine-tune's predictions take {format_size(self.kept_bytes)} in '{folder}', and "
                f"{format_size(free)} are free there. Give fewer texts, or set TMPDIR to a larger disk."
            )

    def _finetuned_losses(self, folder: Path) -> dict[str, Tensor]:
        """Run the fine-tune, keep its predictions in a file for each dataset, and return the losses of its windows."""
        model = self._load_finetuned()
        losses = {}
        for number, (name, windows) in enumerate(self.windows.items()):
            losses[name] = keep_predictions(model, windows, folder / str(number), self.batch_size)
        return losses

    def _compare(self, model: Any, folder: Path) -> dict[str, Compared]:
        """Run a model, and compare it with the predictions that were kept."""
        compared = {}
        for number, (name, windows) in enumerate(self.windows.items()):
            compared[name] = compare(model, windows, folder / str(number), self.batch_size)
        return compared

    def _load_finetuned(self) -> Any:
        """Load the fine-tune; of an adapter, the base with the adapter beside its weights."""
        if self.finetuned.adapter_or_vector != ADAPTER:
            return self.finetuned.load(dtype="auto")
        from peft import PeftModel

        files = resolve(self.finetuned.source, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), hub_options(self.finetuned.kwargs))
        if not (files.folder / ADAPTER_WEIGHTS).is_file():
            raise AdapterError(f"'{self.finetuned}' has no {ADAPTER_WEIGHTS}. Save it with PEFT as safetensors.")
        base = self._base_of_adapter()
        try:
            adapted = PeftModel.from_pretrained(base, str(files.folder))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(
                f"PEFT cannot load the adapter '{self.finetuned}' on the base '{self.base}': {reason}"
            ) from error
        # The model itself, whose layers now have the adapter: PEFT's class around it has other arguments.
        return adapted.get_base_model().eval()

    def _base_of_adapter(self) -> Any:
        """Load the base below an adapter, dequantized if it was quantized when the adapter was trained."""
        if self.quantization is None:
            return self.base.load(dtype="auto")
        from dem_hub.models.loading import DEMModel

        source = self.base.source
        options = {**self.base.kwargs, "dtype": self.quantization.dtype or "auto"}
        return DEMModel.from_pretrained(
            source.repo_id,
            revision=source.revision,
            subfolder=source.subfolder,
            vectors={},
            base_quantized=self.quantization,
            **options,
        )


def check_merge(
    model: str | os.PathLike[str] | VectorSource,
    against: str | os.PathLike[str] | VectorSource,
    datasets: Mapping[str, Any],
    *,
    base: str | os.PathLike[str] | VectorSource | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = BATCH_SIZE,
    max_length: int = MAX_LENGTH,
    **kwargs: Any,
) -> dict[str, DataCheck]:
    """Check what a merge has kept of a fine-tune, by the predictions of both on data.

    The models are loaded one after the other. The log-probabilities of the fine-tune are on the disk meanwhile, in
    float32: 4 bytes for each token of the vocabulary at each scored token, in the system's temporary folder.

    Args:
        model (`str`, `os.PathLike` or [`VectorSource`]): The merge, as it will be served: a recipe or a model.
        against (`str`, `os.PathLike` or [`VectorSource`]): The fine-tune: a model, which is run in its own dtype, or a
            PEFT adapter, which PEFT runs beside the base's weights, unmerged.
        datasets (`Mapping[str, Any]`): Data by name, in any form that [`search_coefficients`] takes. They should be of
            what the fine-tune was trained for, and not have been trained on.
        base (`str`, `os.PathLike` or [`VectorSource`], *optional*): The base. Defaults to the recipe's, or the adapter's.
        columns (`Mapping[str, Sequence[str]]`, *optional*): As in [`search_coefficients`].
        batch_size (`int`, *optional*, defaults to 8): Windows in one forward pass.
        max_length (`int`, *optional*, defaults to 1024): Tokens in a window.
        kwargs: Arguments of transformers' `from_pretrained`: `dtype` and `quantization_config`, in which the merge is
            served, and for all models `device_map`, `token` and others. `base_quantized` is, as in
            [`DEMModel.from_pretrained`], the quantization in which the adapter was trained; by default the recipe's.

    Returns:
        `dict[str, DataCheck]`: For each dataset the losses of base, fine-tune and merge, KL(fine-tune || merge), the
            share of the fine-tune's gain that the merge has, and a verdict; see [`DataCheck`].

    Raises:
        [`~dem_hub.errors.NotFoundError`]: If one of the models does not exist.
        [`~dem_hub.errors.ConfigError`]: If the models cannot be compared: other vocabularies or tokenizers, classes that
            predict no tokens, a base that is not known.
        [`~dem_hub.errors.AdapterError`]: If the adapter is for another task, or PEFT cannot load it on this base.
        [`~dem_hub.errors.DiskSpaceError`]: If there is no room for the fine-tune's predictions.

    Example:

    ```python
    >>> import tempfile
    >>> from dem_hub import DEMModel, check_merge
    >>> recipe = tempfile.mkdtemp()
    >>> DEMModel.from_pretrained(base_folder, vectors={vector_folder: 1.0}).dem.save_pretrained(recipe)
    >>> rows = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]
    >>> checks = check_merge(recipe, finetuned_folder, {"words": rows})
    >>> checks["words"].tokens, checks["words"].divergence.value < checks["words"].base_divergence.value
    (9, True)

    ```
    """
    planned = PlannedCheck.of(
        model,
        against,
        datasets,
        base=base,
        columns=columns,
        batch_size=batch_size,
        max_length=max_length,
        **kwargs,
    )
    logger.info("%s", planned.cost)
    return planned.run()


def _quantization_of(given: Any, merged: NamedModel, finetuned: NamedModel) -> BaseQuantization | None:
    """Return the quantization of the base below an adapter: what is given, or the recipe's."""
    is_adapter = finetuned.adapter_or_vector == ADAPTER
    if given is None:
        recipe = merged.recipe
        return recipe.base_quantized if is_adapter and recipe is not None else None
    if not is_adapter:
        raise ConfigError(
            f"base_quantized is for an adapter that was trained on a quantized base, and '{finetuned}' is a whole "
            "model. Leave it out."
        )
    return BaseQuantization.of(given)


def _give_memory_back() -> None:
    """Free the memory of the model that was run.

    Where accelerate places the next model (`device_map="auto"`), what torch keeps for itself does not count as free.
    """
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def _refuse_not_finite(name: str, finetuned: Tensor, base: Tensor, merged: Tensor) -> None:
    losses = {"the fine-tune": finetuned, "the base": base, "the merge": merged}
    faults = [what for what, totals in losses.items() if not bool(totals.isfinite().all())]
    if faults:
        raise ConfigError(
            f"The loss of {' and '.join(faults)} on '{name}' is not finite. Give another --dtype, in Python dtype=."
        )
