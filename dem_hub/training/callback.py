"""`DEMCallback`: the Trainer's events, turned into a vector on disk and on the Hub.

All that can be known before training is checked before training, and a vector that cannot be taken later is an error in the log, kept for
`callback.vector`, and never the end of a run: the weights are worth more than the vector, which can be extracted from them again.
"""

import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from transformers import Trainer, TrainerCallback

from dem_hub.checkpoints.tensor_groups import norms_by_layer
from dem_hub.codecs.encoder import Encoder
from dem_hub.codecs.listing import AUTO
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import ConfigError, MissingDependencyError, VectorNotFoundError, refuse
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.names import NORMS_PLOT, VECTOR_FILES
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.download import Resolved
from dem_hub.hub.failures import is_transient
from dem_hub.hub.references import VectorSource
from dem_hub.plotting import plot_norms
from dem_hub.training.background_push import Uploader
from dem_hub.training.facts import dataset_names, library_versions, training_facts
from dem_hub.training.gathering import Gathering, share
from dem_hub.training.source import Source, base_name
from dem_hub.vectors.comparison import compare, tensor_norms
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

When = Literal["end", "save", "best"]


class DEMCallback(TrainerCallback):
    """Leaves a distribution vector of a training run: `trainer.add_callback(DEMCallback(...))`, or `DEMCallback(...).attach(trainer)`.

    For `Trainer`, `Seq2SeqTrainer` and TRL's `SFTTrainer`; for full fine-tuning and PEFT, in one process, DDP, FSDP2 and ZeRO-3. A LoRA
    run leaves the adapter itself. The base's weights are read from its checkpoint, never copied from the model, so that a resumed run
    leaves the same vector.

    Args:
        base_model (`str`, `os.PathLike` or [`VectorSource`], *optional*): the base, a Hub id or folder; by default what the model was
            loaded from.
        output_dir (`str` or `os.PathLike`, *optional*): where the vector goes; by default `vector` in the Trainer's folder, or, where the
            Trainer pushes that folder, `_dem/vector`, which it leaves out.
        when (`str`): `"end"`, also `"save"` at each of the Trainer's saves, or `"best"` at those that are the best so far.
        codec, codec_options: as in [`DistributionVector.extract`]. An adapter is stored as PEFT saves it.
        push_to_hub (`bool`): push each vector, in the background.
        hub_model_id (`str`, *optional*): the repository; by default the Trainer's name for its own, with `-vector` after it.
        hub_revision, hub_private_repo, hub_token (*optional*): as in `TrainingArguments`, whose values are the defaults of the last two.
        datasets (`str` or `Sequence[str]`): what it is trained on, for the card; by default what the dataset says of itself.
        recipe (`str` or [`VectorSource`], *optional*): log the cosine to each of its vectors.
        device (`str`, *optional*): where to encode; the accelerator where there is one, by default.

    Raises:
        `CodecError`: no such codec or option. `ConfigError`: no such `when`.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    >>> from dem_hub import DEMCallback
    >>> model = AutoModelForCausalLM.from_pretrained(base_folder)
    >>> rows = [{"input_ids": [1, 5, 9, 2], "labels": [1, 5, 9, 2]}] * 4
    >>> arguments = TrainingArguments(
    ...     "run", max_steps=2, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no"
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
        push_to_hub: bool = False,
        hub_model_id: str | None = None,
        hub_revision: str | None = None,
        hub_private_repo: bool | None = None,
        hub_token: str | bool | None = None,
        datasets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        recipe: str | os.PathLike[str] | VectorSource | None = None,
        device: str | torch.device | None = None,
        **codec_options: Any,
    ) -> None:
        if when not in get_args(When):
            raise ConfigError(f"when is {when!r}; it must be one of {', '.join(get_args(When))}.")
        self.when, self.base_model, self.recipe, self.device = when, base_model, recipe, device
        self.datasets = [str(name) for name in ([datasets] if isinstance(datasets, str | os.PathLike) else datasets)]
        self.encoder: Encoder = encoder_from_name(codec, codec_options)
        self._is_default_codec = codec == AUTO and not codec_options
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._is_pushed, self._repo_id, self._private, self._token = (
            push_to_hub,
            hub_model_id,
            hub_private_repo,
            hub_token,
        )
        self._revision = hub_revision
        self.folder: Path | None = None
        self._trainer: Trainer | None = None
        self._source: Source | None = None
        self._others: list[DistributionVector] = []  # those of the recipe
        self._uploader: Uploader | None = None
        self._failure: Exception | None = None
        self._taken_at: int | None = None
        self._tried_at: int | None = None
        self._unlogged: dict[str, float] = {}

    def attach(self, trainer: Trainer) -> "DEMCallback":
        """Join a Trainer, before its other callbacks, so that TensorBoard, W&B and trackio show what this one logs.

        Args:
            trainer (`Trainer`): the one to watch; `add_callback` is not needed then.

        Returns:
            [`DEMCallback`]: itself.
        """
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(other for other in callbacks if other is not self)]
        self._trainer = trainer
        return self

    @property
    def vector(self) -> DistributionVector:
        """The newest vector.

        Raises:
            What went wrong, if it could not be taken; `VectorNotFoundError` before there is one.
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
        """Find the base, and refuse now what could not be done later.

        Raises:
            `ConfigError`, `CheckpointError`, `AdapterError`, `NotFoundError`, `HfHubHTTPError`: there could be no vector, or no push.
        """
        self._failure, self._taken_at, self._tried_at, self._unlogged = None, None, None, {}
        gathering = Gathering(kwargs["model"])
        error: Exception | None = None
        if state.is_world_process_zero:
            with gathering.leading():
                try:
                    self._prepare(args, state, gathering)
                except Exception as found:  # noqa: BLE001  raised below, once the other processes know
                    error = found
        else:
            gathering.follow()
        message = share(None if error is None else str(error))
        if error is not None:
            raise error
        if message is not None:
            raise ConfigError(message)

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Take the vector at a save that counts."""
        if self.when == "save" or (self.when == "best" and state.best_global_step == state.global_step):
            self._take(args, state, kwargs, state.global_step)

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Take the last vector, and wait for the pushes."""
        is_best_again = args.load_best_model_at_end and state.best_model_checkpoint is not None
        step = state.best_global_step if is_best_again and state.best_global_step else state.global_step
        if self.when == "end" or (self.when == "save" and (is_best_again or self._tried_at != step)):
            self._take(args, state, kwargs, step)
        self._finish_pushes()

    def on_log(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Add what was measured to what the Trainer logs, for the callbacks after this one."""
        logs = kwargs.get("logs")
        if logs is not None:
            logs.update(self._unlogged)
            self._unlogged = {}

    # Before

    def _prepare(self, args: "TrainingArguments", state: "TrainerState", gathering: Gathering) -> None:
        self._check_when(args)
        self.folder = self._choose_folder(args)
        token = self._token if self._token is not None else args.hub_token
        name = VectorSource.parse(self.base_model if self.base_model is not None else base_name(gathering.model))
        self._source = Source.of(name, gathering, HubOptions(token))
        if state.global_step == 0:  # and not resumed
            self._source.look_at_start(gathering)
        if self._source.is_adapter and not self._is_default_codec:
            logger.warning(
                "The run trains a LoRA, which is stored as it is: the codec '%s' is not used.",
                self.encoder.options.name,
            )
        self._others = self._source.open_others(VectorSource.parse(self.recipe)) if self.recipe is not None else []
        if self._is_pushed:
            self._uploader = self._prepare_push(args, token=token)

    def _choose_folder(self, args: "TrainingArguments") -> Path:
        own = Path(str(args.output_dir)).resolve()
        folder = (self._output_dir or own / ("_dem/vector" if args.push_to_hub else "vector")).resolve()
        if args.push_to_hub and folder.is_relative_to(own) and not str(folder.relative_to(own)).startswith("_"):
            raise ConfigError(
                f"output_dir is '{folder}', in '{own}', which the Trainer pushes. Name a folder elsewhere, or leave output_dir out: it is "
                f"'{own / '_dem' / 'vector'}' then, which the Trainer leaves out."
            )
        return folder

    def _check_when(self, args: "TrainingArguments") -> None:
        strategies = {
            name: str(getattr(getattr(args, name), "value", getattr(args, name)))
            for name in ("save_strategy", "eval_strategy")
        }
        faults = []
        if self.when != "end" and strategies["save_strategy"] == "no":
            faults.append("save_strategy is 'no'")
        if self.when == "best" and strategies["eval_strategy"] == "no":
            faults.append("eval_strategy is 'no'")
        if self.when == "best" and args.metric_for_best_model is None:
            faults.append("metric_for_best_model is None")
        if faults:
            refuse(
                ConfigError,
                f"when='{self.when}' has nothing to go by.",
                faults,
                "Set them in the TrainingArguments, or use when='end'.",
            )

    def _prepare_push(self, args: "TrainingArguments", *, token: str | bool | None) -> Uploader:
        """Make the repository, which shows that one may write there.

        Raises:
            `ConfigError`: nobody else knows the base, or the repository is the Trainer's own. `HfHubHTTPError`: may not write.
        """
        from huggingface_hub.errors import HfHubHTTPError

        assert self._source is not None
        base = self._source.base
        trainers = args.hub_model_id or Path(str(args.output_dir)).resolve().name
        repo_id = self._repo_id or f"{trainers}-vector"
        if base.commit is None:
            raise ConfigError(
                f"The base '{base}' is a folder of this machine, which nobody else has. Say what the Hub calls it: base_model='org/base'."
            )
        private = self._private if self._private is not None else args.hub_private_repo
        try:
            repo_id = hub_api().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        except HfHubHTTPError as error:
            if not is_transient(error.response.status_code):
                raise
            logger.warning(
                "The Hub did not answer as it should (%s). The push to '%s' is tried when there is a vector.",
                error,
                repo_id,
            )
        except (ConnectionError, TimeoutError) as error:
            logger.warning(
                "The Hub cannot be reached (%s). The push to '%s' is tried when there is a vector.", error, repo_id
            )
        if args.push_to_hub and repo_id.rpartition("/")[2] == trainers.rpartition("/")[2]:
            raise ConfigError(
                f"hub_model_id is '{repo_id}', where the Trainer pushes the model itself. Give the vector its own repository."
            )
        self._repo_id = repo_id
        base_id = base.source.repo_id if self._source.is_adapter else None
        options = {"revision": self._revision, "private": private, "token": token}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}

        def push(folder: Path) -> None:
            vector = DistributionVector(Resolved.local(folder), verify=False)
            vector.push_to_hub(repo_id, base_model=base_id, **given)

        return Uploader(push, repo_id)

    # A vector

    def _take(self, args: "TrainingArguments", state: "TrainerState", kwargs: Mapping[str, Any], step: int) -> None:
        """Take the vector of the model as it is, on all processes together; it is as it was after `step`."""
        gathering = Gathering(kwargs["model"])
        self._tried_at = step  # on every process, so that all agree on whether there is more to do
        if not state.is_world_process_zero:
            gathering.follow()
            return
        start = time.monotonic()
        try:
            with gathering.leading():
                names = self.datasets or dataset_names(getattr(kwargs.get("train_dataloader"), "dataset", None))
                measured = self._write(gathering, training_facts(args, state, names, step))
        except Exception as error:  # noqa: BLE001  whatever it is, the run goes on
            self._failure = error
            logger.error("No vector was taken at step %d: %s. Training goes on.", step, error)
            return
        self._failure, self._taken_at = None, step
        logger.info("Vector of step %d in '%s', %.1f s.", step, self.folder, time.monotonic() - start)
        self._log(state, measured)
        if self._uploader is not None:
            assert self.folder is not None
            self._uploader.submit(self.folder)

    def _write(self, gathering: Gathering, facts: Mapping[str, Any]) -> dict[str, float]:
        """Write the vector's folder, at once and complete; returns what is worth logging."""
        assert self._source is not None and self.folder is not None
        with atomic_folder(self.folder) as folder:
            self._source.write(folder, gathering, self.encoder, facts, library_versions(), self.device)
            vector = DistributionVector(Resolved.local(folder), verify=False)
            norms = tensor_norms(vector, self._source.base)
            measured = {"dem/norm": sum(norm**2 for norm in norms.values()) ** 0.5, "dem/bytes": float(vector.nbytes)}
            if self._others:
                found = compare([vector, *self._others], self._source.base)
                measured |= {
                    f"dem/cosine/{name}": value
                    for name, value in zip(found.names[1:], found.cosines[0][1:], strict=True)
                }
            try:
                plot_norms(norms_by_layer(norms), folder / NORMS_PLOT, "Norm of the delta, by layer")
            except MissingDependencyError as error:
                logger.info("No picture of the layers: %s", error)
            names = {path.name for path in folder.iterdir()}
        for path in [path for pattern in VECTOR_FILES for path in self.folder.glob(pattern)]:
            if path.name not in names:  # of an older vector
                path.unlink()
        return measured

    def _log(self, state: "TrainerState", measured: dict[str, float]) -> None:
        if self._trainer is not None:
            Trainer.log(self._trainer, measured)  # a subclass's own would count this as a log of its training
            return
        epoch = {"epoch": state.epoch} if state.epoch is not None else {}
        state.log_history.append({**measured, **epoch, "step": state.global_step})
        self._unlogged = measured

    def _finish_pushes(self) -> None:
        """Wait for the pushes, and say what is not there."""
        if self._uploader is None:
            return
        failure = self._uploader.finish()
        if failure is not None:
            options = ["--revision", self._revision] if self._revision else []
            command = shlex.join(["dem-hub", "push", str(self.folder), str(self._repo_id), *options])
            logger.error(
                "The vector is not on the Hub: %s. It is complete in '%s'. Push it with:\n    %s",
                failure,
                self.folder,
                command,
            )
