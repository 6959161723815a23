"""`DEMCallback`: turn the Trainer's events into a vector, on disk and on the Hub.

Everything that can be checked before training is checked then, and refused. After that nothing ends the run: a
vector that cannot be taken is an error in the log, and `callback.vector` raises it. The trained weights are worth
more than the vector, which can be extracted from them again.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from transformers import Trainer, TrainerCallback

from dem_hub.codecs.encoder import Encoder
from dem_hub.codecs.listing import AUTO
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import ConfigError, VectorNotFoundError
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved
from dem_hub.hub.references import VectorSource
from dem_hub.training.facts import dataset_names, library_versions, training_facts
from dem_hub.training.gathering import Gathering, share
from dem_hub.training.measurements import measure_vector
from dem_hub.training.pushes import Pushes
from dem_hub.training.settings import When, check_when, choose_folder
from dem_hub.training.source import Source, base_name, tokenizer_of
from dem_hub.training.statistics import Seen, check_evaluation_set, check_run, leave_statistics, measure_base
from dem_hub.vectors.folder import replaced_folder
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)


class DEMCallback(TrainerCallback):
    """A callback for transformers' `Trainer` that leaves a distribution vector of the training run.

    Add it with `trainer.add_callback(DEMCallback(...))` or `DEMCallback(...).attach(trainer)`. It works with `Trainer`,
    `Seq2SeqTrainer` and TRL's `SFTTrainer`, for full fine-tuning and for PEFT, in one process, with DDP, FSDP2 and
    ZeRO-3. A LoRA run leaves the adapter itself.

    The base's weights are read from its checkpoint and never copied from the model in training, so a run that was
    resumed leaves the same vector as one that was not interrupted.

    Args:
        base_model (`str`, `os.PathLike` or [`VectorSource`], *optional*): Hub id or folder of the base. By default
            what the model was loaded from.
        output_dir (`str` or `os.PathLike`, *optional*): Folder for the vector. By default `vector` in the Trainer's
            `output_dir`, or `_dem/vector` if the Trainer pushes its `output_dir`, because it does not push names
            that begin with an underscore.
        when (`str`, *optional*, defaults to `"end"`): When to take the vector: `"end"` of training; `"save"`, also
            at each save of the Trainer; or `"best"`, at each save that is the best so far.
        codec (`str`, *optional*, defaults to `"auto"`): How to store the vector, as in
            [`DistributionVector.extract`]. A LoRA run does not use it.
        input_statistics (`bool`, *optional*, defaults to `False`): At the end, gather the input statistics of the
            trained model on 16,000 tokens of the Trainer's evaluation set, and save them beside the vector, so that
            [`regmean`] needs no data. A pass over the same tokens before the first step measures the base. Needs
            [`DEMCallback.attach`].
        push_to_hub (`bool`, *optional*, defaults to `False`): Push each vector in the background.
        hub_model_id (`str`, *optional*): The repository for the vector. By default the Trainer's own with `-vector`
            after it.
        hub_revision (`str`, *optional*): Branch to push to. By default `main`.
        hub_private_repo (`bool`, *optional*): Create a private repository. By default as the `TrainingArguments` say.
        hub_token (`str` or `bool`, *optional*): Token for the Hub. By default as the `TrainingArguments` say.
        hub_include_statistics (`bool`, *optional*, defaults to `False`): Push the input statistics too. They tell
            something about the evaluation set.
        datasets (`str` or `Sequence[str]`, *optional*): Names of the training data, for the card. By default what
            the dataset says about itself.
        recipe (`str` or [`VectorSource`], *optional*): Log the cosine to each vector of this recipe.
        device (`str` or `torch.device`, *optional*): Device to encode on. By default the accelerator, if there is one.
        codec_options: Options of the codec, as in [`DistributionVector.extract`].

    Raises:
        `CodecError`: If the codec or one of its options does not exist.
        `ConfigError`: If `when` is none of the three, or there would be no input statistics to push.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    >>> from dem_hub import DEMCallback
    >>> model = AutoModelForCausalLM.from_pretrained(base_folder)
    >>> rows = [{"input_ids": [1, 5, 9, 2], "labels": [1, 5, 9, 2]}] * 4
    >>> arguments = TrainingArguments(
    ...     "run", max_steps=2, use_cpu=True, save_strategy="no", logging_strategy="no", report_to="none",
    ...     disable_tqdm=True,
    ... )
    >>> callback = DEMCallback(codec="exact")
    >>> trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
    >>> _ = trainer.train()  # doctest: +ELLIPSIS
    {...}
    >>> callback.vector.config.codec
    'exact'

    ```
    """

    def __init__(  # noqa: PLR0913  every argument has a default
        self,
        base_model: str | os.PathLike[str] | VectorSource | None = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        when: When = "end",
        codec: str = "auto",
        input_statistics: bool = False,
        push_to_hub: bool = False,
        hub_model_id: str | None = None,
        hub_revision: str | None = None,
        hub_private_repo: bool | None = None,
        hub_token: str | bool | None = None,
        hub_include_statistics: bool = False,
        datasets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        recipe: str | os.PathLike[str] | VectorSource | None = None,
        device: str | torch.device | None = None,
        **codec_options: Any,
    ) -> None:
        if when not in get_args(When):
            raise ConfigError(f"when is {when!r}; it must be one of {', '.join(get_args(When))}.")
        if hub_include_statistics and not input_statistics:
            raise ConfigError("hub_include_statistics=True has nothing to push. Set input_statistics=True too.")
        if isinstance(datasets, str | os.PathLike):
            datasets = [datasets]
        self.base_model = base_model
        self.when = when
        self.encoder: Encoder = encoder_from_name(codec, codec_options)
        self.datasets = [str(name) for name in datasets]
        self.recipe = recipe
        self.input_statistics = input_statistics
        self.device = device
        self.folder: Path | None = None  # known once training begins
        self._is_default_codec = codec == AUTO and not codec_options
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._token = hub_token
        self._is_pushed = push_to_hub
        self._pushes = Pushes(
            hub_model_id, hub_revision, private=hub_private_repo, include_statistics=hub_include_statistics
        )

        # The state of a run. Only the main process has a source.
        self._trainer: Trainer | None = None
        self._source: Source | None = None
        self._base: Seen | None = None  # what the base answers, if a run begins with it; on the main process
        self._recipe_vectors: list[DistributionVector] = []
        self._failure: Exception | None = None  # why the newest vector could not be taken
        self._taken_at: int | None = None  # step of the newest vector
        self._tried_at: int | None = None  # step of the last attempt, on all processes
        self._unlogged: dict[str, float] = {}  # figures that wait for the Trainer's next log

    def attach(self, trainer: Trainer) -> "DEMCallback":
        """Add the callback to a Trainer, before its other callbacks, so that TensorBoard, W&B and trackio show what
        it logs.

        Args:
            trainer (`Trainer`): The Trainer. `add_callback` is not needed then.

        Returns:
            [`DEMCallback`]: The callback itself.

        Raises:
            `ConfigError`: If input statistics are asked for, and the Trainer has no evaluation set.
        """
        if self.input_statistics:
            check_evaluation_set(trainer)
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(other for other in callbacks if other is not self)]
        self._trainer = trainer
        return self

    @property
    def vector(self) -> DistributionVector:
        """The newest vector of the run, opened from its folder.

        Raises:
            `VectorNotFoundError`: If there is no vector yet, or this is not the main process.
            `Exception`: The error of the last attempt, if the vector could not be taken.
        """
        if self._failure is not None:
            raise self._failure
        if self.folder is None or self._taken_at is None:
            raise VectorNotFoundError(
                "There is no vector yet: the run has not come to it, or this is not the main process."
            )
        return DistributionVector.from_pretrained(self.folder)

    # The Trainer's events

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Find the base and the repository, and refuse what could not be done later.

        Raises:
            `ConfigError`, `CheckpointError`, `AdapterError`, `NotFoundError`, `HfHubHTTPError`: If there could be
                no vector, or no push.
        """
        self._failure = None
        self._taken_at = None
        self._tried_at = None
        self._unlogged = {}
        self._base = None
        starts_from_base = False
        gathering = Gathering(kwargs["model"])
        tokenizer = tokenizer_of(kwargs.get("processing_class"))
        error: Exception | None = None
        if state.is_world_process_zero:
            with gathering.leading():
                try:
                    starts_from_base = self._prepare(args, state, gathering, tokenizer)
                except Exception as refused:  # noqa: BLE001  raised below, once the other processes know
                    error = refused
        else:
            gathering.follow()
        message = share(None if error is None else str(error))
        if error is not None:
            raise error
        if message is not None:
            raise ConfigError(message)
        if self.input_statistics and not state.global_step:
            assert self._trainer is not None
            seen = measure_base(self._trainer, kwargs["model"])
            self._base = seen if starts_from_base else None

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Take the vector at a save, if `when` asks for it."""
        is_best = state.best_global_step == state.global_step
        if self.when == "save" or (self.when == "best" and is_best):
            self._take(args, state, kwargs, state.global_step)
            self._pushes.submit(self.folder)

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Take the last vector and its input statistics, and wait for the pushes."""
        # The Trainer loads the best checkpoint before this event, so the model may be that of an earlier step.
        has_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        step = state.global_step
        if has_best and state.best_global_step:
            step = state.best_global_step
        is_new = has_best or self._tried_at != step
        if self.when == "end" or (self.when == "save" and is_new):
            self._take(args, state, kwargs, step)
        if self.input_statistics:
            self._gather_statistics(state, kwargs, step)
        self._pushes.submit(self.folder)
        self._pushes.finish(self.folder)

    def on_log(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Add the figures of the vector to the Trainer's log, for the callbacks after this one."""
        logs = kwargs.get("logs")
        if logs is not None:
            logs.update(self._unlogged)
            self._unlogged = {}

    # Before training

    def _prepare(self, args: "TrainingArguments", state: "TrainerState", gathering: Gathering, tokenizer: Any) -> bool:
        """Find everything that a vector needs, on the main process. Return whether the run begins with the base."""
        check_when(self.when, args)
        self.folder = choose_folder(self._output_dir, args)
        token = args.hub_token if self._token is None else self._token
        name = base_name(gathering.model) if self.base_model is None else self.base_model
        source = Source.of(VectorSource.parse(name), gathering, HubOptions(token))
        self._source = replace(source, tokenizer=tokenizer)
        is_resumed = state.global_step > 0
        starts_from_base = not is_resumed and self._source.is_base(gathering)
        if self._source.is_adapter and not self._is_default_codec:
            logger.warning(
                "The run trains a LoRA, which is stored as it is: the codec '%s' is not used.",
                self.encoder.options.name,
            )
        self._recipe_vectors = []
        if self.recipe is not None:
            self._recipe_vectors = self._source.open_recipe_vectors(VectorSource.parse(self.recipe))
        if self.input_statistics:
            check_run(self._trainer, self.when, args, gathering, self._source.base.architecture)
        if self._is_pushed:
            self._pushes.begin(args, self._source, token=token)
        return starts_from_base

    # A vector

    def _take(self, args: "TrainingArguments", state: "TrainerState", kwargs: Mapping[str, Any], step: int) -> None:
        """Take the vector of the model as it is now, on all processes together.

        Args:
            args, state, kwargs: What the Trainer hands to the event.
            step (`int`): The optimizer step whose weights the model has.
        """
        gathering = Gathering(kwargs["model"])
        self._tried_at = step  # on every process, so that all agree on whether there is more to do
        if not state.is_world_process_zero:
            gathering.follow()
            return
        start = time.monotonic()
        try:
            with gathering.leading():
                dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
                names = self.datasets or dataset_names(dataset)
                measured = self._write(gathering, training_facts(args, state, names, step))
        except Exception as error:  # noqa: BLE001  training goes on, whatever it is
            self._failure = error
            logger.error("No vector was taken at step %d: %s. Training goes on.", step, error)
            return
        self._failure = None
        self._taken_at = step
        logger.info("Vector of step %d in '%s', %.1f s.", step, self.folder, time.monotonic() - start)
        self._log(state, measured)
        self._pushes.note_vector()

    def _gather_statistics(self, state: "TrainerState", kwargs: Mapping[str, Any], step: int) -> None:
        """Gather the input statistics of the model of a step beside its vector, on all processes together."""
        assert self._trainer is not None
        has_vector = self._failure is None and self._taken_at == step  # known to the main process alone
        architecture = share(self._source.base.architecture if has_vector and self._source else None)
        if architecture is not None:
            folder = self.folder if state.is_world_process_zero else None
            leave_statistics(self._trainer, kwargs["model"], architecture, folder, self._base)
            self._pushes.note_statistics()

    def _write(self, gathering: Gathering, facts: Mapping[str, Any]) -> dict[str, float]:
        """Write the vector into its folder, in place of an older one, and return the figures to log."""
        assert self._source is not None and self.folder is not None
        with replaced_folder(self.folder) as folder:
            self._source.write(folder, gathering, self.encoder, facts, library_versions(), self.device)
            vector = DistributionVector(Resolved.local(folder), verify=False)
            return measure_vector(vector, self._source.base, self._recipe_vectors, folder)

    def _log(self, state: "TrainerState", measured: dict[str, float]) -> None:
        """Log the figures at once if the callback is attached to its Trainer; otherwise with the Trainer's next log."""
        if self._trainer is not None:
            # A subclass's `log` may add its own averages, as TRL's does, and would count this call as one of its logs.
            Trainer.log(self._trainer, measured)
            return
        entry: dict[str, float] = dict(measured)
        if state.epoch is not None:
            entry["epoch"] = state.epoch
        entry["step"] = state.global_step
        state.log_history.append(entry)
        self._unlogged = measured
