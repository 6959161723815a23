"""The pushes of a callback: the repository that they go to, and what is in the vector's folder and not on the Hub yet.

The repository is created before training begins (`repository.py`). From then on nothing is raised: each push runs in
the background (`background_push.py`), and at the end the log has the command that makes up for one that failed.
"""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.hub.commits import PushOptions
from dem_hub.training.background_push import Uploader
from dem_hub.training.repository import prepare_repository, pusher
from dem_hub.training.source import Source

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


class Pushes:
    """The pushes of the vectors of a callback. Until [`Pushes.begin`], as on all processes but one, nothing is pushed.

    Args:
        repo_id (`str`, *optional*): The repository. By default the Trainer's own with `-vector` after it.
        revision (`str`, *optional*): Branch to push to.
        private (`bool`, *optional*): Create a private repository. By default as the `TrainingArguments` say.
        include_statistics (`bool`): Push the input statistics too.
    """

    def __init__(
        self, repo_id: str | None, revision: str | None, *, private: bool | None, include_statistics: bool
    ) -> None:
        self._repo_id = repo_id
        self._revision = revision
        self._private = private
        self._includes_statistics = include_statistics
        self._uploader: Uploader | None = None
        self._has_news = False  # what is in the folder has not been handed to the uploader

    def begin(self, args: "TrainingArguments", source: Source, *, token: str | bool | None) -> None:
        """Create the repository of a run that begins.

        Args:
            args (`TrainingArguments`): The Trainer's arguments.
            source ([`Source`]): What the vectors of the run are made from.
            token (`str` or `bool`, *optional*): Token for the Hub.

        Raises:
            What [`prepare_repository`] raises.
        """
        private = args.hub_private_repo if self._private is None else self._private
        self._repo_id = prepare_repository(self._repo_id, args, source.base, private=private, token=token)
        options: PushOptions = {}
        if self._revision is not None:
            options["revision"] = self._revision
        if private is not None:
            options["private"] = private
        if token is not None:
            options["token"] = token
        # PEFT writes into an adapter what the model was loaded from, which may be a local copy of the base.
        base_model = source.base.source.repo_id if source.is_adapter else None
        push = pusher(self._repo_id, base_model, options, include_statistics=self._includes_statistics)
        self._uploader = Uploader(push, self._repo_id)

    def note_vector(self) -> None:
        """Note that a new vector is in the folder."""
        self._has_news = True

    def note_statistics(self) -> None:
        """Note that new input statistics are in the folder."""
        self._has_news = self._has_news or self._includes_statistics

    def submit(self, folder: Path | None) -> None:
        """Push what is new in the folder of the vector, in the background."""
        if self._uploader is not None and self._has_news:
            assert folder is not None
            self._uploader.submit(folder)
        self._has_news = False

    def finish(self, folder: Path | None) -> None:
        """Wait for the pushes. If the newest vector is not on the Hub, log the command that pushes it."""
        if self._uploader is None:
            return
        failure = self._uploader.finish()
        if failure is not None:
            command = ["dem-hub", "push", str(folder), str(self._repo_id)]
            if self._revision:
                command += ["--revision", self._revision]
            logger.error(
                "The vector is not on the Hub: %s. It is complete in '%s'. Push it with:\n    %s",
                failure,
                folder,
                shlex.join(command),
            )
