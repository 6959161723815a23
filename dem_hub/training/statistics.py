"""Input statistics at the end of a run: the trained model runs over the Trainer's evaluation set once more.

The batches are the Trainer's own, as its `evaluate` would see them, and the model is the one that was trained, with the
layers of PEFT in it. Several processes run over their batches in step, each over its share, and their sketches add up.
Whether it can work is settled before the first step: the model, which is the base then, runs over the same batches. Its
loss minus that of the trained model is what the vector gains, by which RegMean weights distributions.
"""

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.errors import ConfigError, refuse
from dem_hub.evaluation.likelihood import as_inputs, is_seq2seq, negative_log_likelihood, pieces
from dem_hub.evaluation.processes import total
from dem_hub.evaluation.scorable import is_scorable
from dem_hub.evaluation.windows import NOT_SCORED, Window
from dem_hub.hub.download import Resolved
from dem_hub.input_statistics.addition import add_up, gathered
from dem_hub.input_statistics.gathering import LINEAR, watching
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.training.gathering import Gathering
from dem_hub.training.settings import When, check_statistics
from dem_hub.vectors.statistics_beside import tied_statistics
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

# Tokens of the evaluation set, over all processes, after which no more batches are read. On SmolLM2's demo RegMean's
# gain grows little beyond 4,000 (benchmarks/README.md, `regmean.py`); larger models have more dimensions to tell apart.
TOKENS = 16_000

_INSTEAD = "Train without input_statistics=True, and gather them from data afterwards: dem-hub statistics."


def check_evaluation_set(trainer: Trainer) -> None:
    """Check that a Trainer has an evaluation set.

    Raises:
        `ConfigError`: If it has none.
    """
    data = trainer.eval_dataset
    if data is None or (isinstance(data, Sized) and len(data) == 0):
        raise ConfigError(
            "DEMCallback(input_statistics=True) gathers them on the evaluation set, and this Trainer has none. Give it "
            "an eval_dataset, or gather them from other data after training: dem-hub statistics."
        )


def check_run(
    trainer: Trainer | None,
    when: When,
    args: "TrainingArguments",
    gathering: Gathering,
    architecture: Architecture | None,
) -> None:
    """Check that the input statistics of a run can be gathered at its end.

    Args:
        trainer (`Trainer`, *optional*): The Trainer; `None` if the callback is not attached to one.
        when (`str`): When the vector is taken.
        args (`TrainingArguments`): The Trainer's arguments.
        gathering ([`Gathering`]): The model in training.
        architecture ([`Architecture`], *optional*): That of its base.

    Raises:
        `ConfigError`: If there is no evaluation set, the vector is not that of the model at the end, the model is
            sharded in another way than by FSDP2, or layers are not where they are expected.
    """
    if trainer is None:
        raise ConfigError(
            "DEMCallback(input_statistics=True) needs the evaluation set of its Trainer, which a callback does not "
            "see. Write DEMCallback(...).attach(trainer) in place of trainer.add_callback(...)."
        )
    check_statistics(when, args)
    check_evaluation_set(trainer)
    if architecture is None:
        raise ConfigError(
            "The architecture of the base is not known, so the inputs of its layers cannot be told apart. Train "
            "without input_statistics=True."
        )
    faults = [*_sharding_faults(gathering, architecture, trainer), *_missing_layers(gathering, architecture)]
    if faults:
        refuse(ConfigError, "The inputs of this model's layers cannot be seen in this run.", faults, _INSTEAD)


@dataclass(frozen=True)
class Seen:
    """What a model answered on the evaluation set.

    Args:
        data (`str`): A hash of the tokens.
        loss (`float`, *optional*): The mean loss of a token that is predicted, in nats; `None` if the batches have no
            labels, or the model predicts no next token.
    """

    data: str
    loss: float | None

    def gain(self, trained: "Seen") -> float | None:
        """Return what a trained model gains over this one, in nats a token; `None` if it saw other tokens."""
        if self.loss is None or trained.loss is None or self.data != trained.data:
            return None
        return self.loss - trained.loss


def measure_base(trainer: Trainer, model: torch.nn.Module) -> Seen:
    """Return what the model before its first step answers on the evaluation set. All processes call this.

    The run is the same as without it: random numbers go on where they were.

    Raises:
        `Exception`: What fails on any process, on all of them.
    """
    gathering = Gathering(model)
    with _same_randomness(), _running(trainer, gathering):
        return _see(trainer, gathering)


def leave_statistics(
    trainer: Trainer, model: torch.nn.Module, architecture: Architecture, folder: Path | None, base: Seen | None
) -> None:
    """Gather the input statistics of the model in training, and write them beside its vector.

    All processes call this. What fails is an error in the log, as the vector is there.

    Args:
        trainer (`Trainer`): The Trainer.
        model (`torch.nn.Module`): Its model, wrapped for several processes or not.
        architecture ([`Architecture`]): That of the base.
        folder (`Path`, *optional*): The folder of the vector, on the main process.
        base ([`Seen`], *optional*): What the base answered, if it is known.
    """
    try:
        statistics = gather_in_training(trainer, Gathering(model), architecture, base)
        if folder is not None:
            tied_statistics(statistics, DistributionVector(Resolved.local(folder), verify=False)).save_pretrained(
                folder
            )
            logger.info("Input statistics of %d tokens in '%s'.", statistics.tokens, folder)
    except Exception as error:  # noqa: BLE001  no error may end a training run
        logger.error(
            "No input statistics were gathered: %s. The vector is complete in '%s'. Gather them from data: dem-hub "
            "statistics.",
            error,
            folder,
        )


def gather_in_training(
    trainer: Trainer, gathering: Gathering, architecture: Architecture, base: Seen | None
) -> InputStatistics:
    """Return the input statistics of the model in training on its Trainer's evaluation set. All processes call this.

    Raises:
        `Exception`: What fails on any process, on all of them.
    """
    with _running(trainer, gathering), watching(gathering.core, architecture, gathering.model) as watch:
        seen = _see(trainer, gathering)
    add_up(watch, trainer.accelerator.device)
    return replace(watch.statistics(seen.data), gain=None if base is None else base.gain(seen))


def _see(trainer: Trainer, gathering: Gathering) -> Seen:
    """Run over the evaluation set, and add up what all processes saw."""
    run = _Run(trainer, gathering)
    names = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, Mapping) else [None]
    for place, name in enumerate(names):
        # Of several data sets each has its share of the tokens.
        run.read(trainer.get_eval_dataloader(name), TOKENS * (place + 1) // len(names))
    data = hashlib.sha256("".join(gathered(run.hash.hexdigest())).encode()).hexdigest()[:16]
    # In float32, as not every device has float64.
    sums = torch.tensor([run.nats, run.scored], dtype=torch.float32, device="cpu")
    nats, scored = total(sums, trainer.accelerator.device).tolist()
    return Seen(data, nats / scored if scored else None)


@contextmanager
def _running(trainer: Trainer, gathering: Gathering) -> Iterator[None]:
    """Run the model as the Trainer evaluates it."""
    with _evaluating(gathering.model), torch.no_grad(), trainer.accelerator.autocast():
        yield


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Give all generators their states back that draw the order of data: a DataLoader draws as it begins."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@dataclass
class _Run:
    """Forward passes over batches of a Trainer, on all processes in step.

    `hash` is of this process's tokens, `tokens` their number, and `nats` the loss of the `scored` ones of them.
    """

    trainer: Trainer
    gathering: Gathering
    hash: Any = field(default_factory=hashlib.sha256)
    tokens: int = 0
    nats: float = 0.0
    scored: int = 0

    def read(self, batches: Any, tokens: int) -> None:
        """Run over batches until all processes together have seen so many tokens, or one of them has no more batches."""
        iterator = iter(batches)
        try:
            while not self._is_read(iterator, tokens):
                pass
        finally:
            if hasattr(batches, "end"):
                batches.end()  # what accelerate does after the last batch, which may not have come

    def _is_read(self, iterator: Iterator[Any], tokens: int) -> bool:
        """Run over one batch, and return whether it was the last."""
        batch = None
        failure: Exception | None = None
        try:
            batch = next(iterator, None)
            if batch is not None:
                self._forward(batch)
        except Exception as error:  # noqa: BLE001  raised below, once the other processes know
            failure = error
        # One that stopped alone would leave the others waiting for it.
        mine = torch.tensor([self.tokens, batch is None, failure is not None], device="cpu")
        seen, finished, failed = total(mine, self.trainer.accelerator.device).tolist()
        if failure is not None:
            raise failure
        if failed:
            raise RuntimeError("another process could not run over its batches; its own log says why")
        return bool(finished) or seen >= tokens

    def _forward(self, batch: Mapping[str, Any]) -> None:
        """Run the model over one batch."""
        from accelerate.utils import send_to_device

        if "input_ids" not in batch:
            raise ConfigError(f"A batch of the evaluation set has {sorted(batch)}, and no input_ids. {_INSTEAD}")
        inputs = dict(send_to_device(batch, self.trainer.accelerator.device))
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        tokens = ids
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            tokens = ids[mask.bool()]
        self.hash.update(tokens.cpu().numpy().tobytes())
        self.tokens += tokens.numel()
        if is_seq2seq(self.gathering.core):
            # An encoder's and a decoder's padding are not told apart by their shapes. One row has none.
            for window in _rows(inputs):
                row = as_inputs([window], ids.device)
                answered = self.gathering.model(**row, use_cache=False)
                self._score(answered.logits, row["labels"])
            return
        labels = inputs.pop("labels", None)  # for a loss in 16 bits, and of experts' balance
        answered = self.gathering.model(**inputs | {"use_cache": False})
        core = self.gathering.core
        if labels is not None and is_scorable(core.config, type(core).__name__):
            self._score(answered.logits, labels[:, 1:])

    def _score(self, logits: Tensor, targets: Tensor) -> None:
        """Add the loss of a batch: logits (rows, tokens, vocabulary) and what comes at each place, (rows, tokens)."""
        for row, of_row in zip(logits, targets, strict=True):
            for scored in pieces(0, row, of_row):
                self.nats += negative_log_likelihood(scored)
                self.scored += len(scored.targets)


def _rows(inputs: Mapping[str, Tensor]) -> Iterator[Window]:
    """Yield each row of a batch for a sequence-to-sequence model, without padding."""
    ids = inputs["input_ids"]
    masks = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    for row, mask, labels in zip(ids, masks, inputs["labels"], strict=True):
        places = (labels != NOT_SCORED).nonzero().flatten().tolist()
        length = places[-1] + 1 if places else 1
        yield Window(tuple(row[mask].tolist()), tuple(labels[:length].tolist()))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off in a block, and give each module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sharding_faults(gathering: Gathering, architecture: Architecture, trainer: Trainer) -> Iterator[str]:
    from torch.distributed.fsdp import FSDPModule

    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    is_fsdp = any(isinstance(module, FSDPModule) for module in gathering.model.modules())
    if any(hasattr(tensor, "ds_id") for tensor in gathering.tensors.values()):
        yield "DeepSpeed ZeRO-3 shards the model, and its forward pass outside of DeepSpeed's engine is not tested"
    elif parallelism is not None and parallelism.non_data_parallel_size > 1:
        yield "the tokens or the layers are split over processes (tensor, context or sequence parallelism)"
    elif gathering.is_sharded and not is_fsdp:
        yield "the layers are split over processes (tensor parallelism), each of which sees a part of their inputs"
    elif is_fsdp and architecture.fused:
        yield f"FSDP2 shards the experts of a layer as one tensor ('{next(iter(architecture.fused))}')"


def _missing_layers(gathering: Gathering, architecture: Architecture) -> Iterator[str]:
    """Yield a fault for layers that are not where the base has them: something has wrapped them."""
    modules = dict(gathering.core.named_modules())
    linears = [module.name for module in architecture.modules.values() if module.kind in LINEAR]
    missing = [name for name in linears if name not in modules]
    if missing:
        yield f"the model has no layer '{missing[0]}' (one of {len(missing)}), as its base does"
    parameters = dict(gathering.core.named_parameters(remove_duplicate=False))
    wrapped = [name for name in architecture.fused if name not in parameters]
    if wrapped:
        yield f"'{wrapped[0]}', the experts of a layer, is wrapped (PEFT's target_parameters)"
