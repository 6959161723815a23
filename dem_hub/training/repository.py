"""The repository on the Hub that a run pushes its vectors to.

It is created before training begins: a token that may not write there, or a base that only this machine has, is
then an error at once and not after hours of training. A Hub that cannot be reached at that moment is only a
warning, since the pushes come later.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import ConfigError
from dem_hub.files.names import INPUT_STATISTICS
from dem_hub.hub.client import hub_api
from dem_hub.hub.commits import PushOptions
from dem_hub.hub.download import Resolved
from dem_hub.hub.failures import is_transient
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

_NOT_REACHED = "%s (%s). The push to '%s' is tried when there is a vector."


def prepare_repository(
    repo_id: str | None,
    args: "TrainingArguments",
    base: Base,
    *,
    private: bool | None,
    token: str | bool | None,
) -> str:
    """Create the repository for the vectors of a run, if it does not exist.

    Args:
        repo_id (`str`, *optional*): The repository that the user asked for. By default the Trainer's own name with
            `-vector` after it.
        args (`TrainingArguments`): The Trainer's arguments.
        base ([`Base`]): The base of the vectors.
        private (`bool`, *optional*): Create it as a private repository.
        token (`str` or `bool`, *optional*): Token for the Hub.

    Returns:
        `str`: The full id of the repository. If the Hub could not be reached, the id as it was asked for.

    Raises:
        `ConfigError`: If the base is a local folder, or the repository is the one that the Trainer pushes its model to.
        `HfHubHTTPError`: If the Hub refuses to create the repository.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if base.commit is None:
        raise ConfigError(
            f"The base '{base}' is a folder of this machine, which nobody else has. Say what the Hub calls it: "
            "base_model='org/base'."
        )
    model_id = args.hub_model_id or Path(str(args.output_dir)).resolve().name
    repo_id = repo_id or f"{model_id}-vector"
    try:
        repo_id = hub_api().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    except HfHubHTTPError as error:
        if not is_transient(error.response.status_code):
            raise
        logger.warning(_NOT_REACHED, "The Hub did not answer as it should", error, repo_id)
    except (ConnectionError, TimeoutError) as error:
        logger.warning(_NOT_REACHED, "The Hub cannot be reached", error, repo_id)
    if args.push_to_hub and repo_id.rpartition("/")[2] == model_id.rpartition("/")[2]:
        raise ConfigError(
            f"hub_model_id is '{repo_id}', where the Trainer pushes the model itself. Give the vector its own "
            "repository."
        )
    return repo_id


def pusher(
    repo_id: str, base_model: str | None, options: PushOptions, *, include_statistics: bool = False
) -> Callable[[Path], None]:
    """Return a function that pushes a vector's folder to a repository.

    Args:
        repo_id (`str`): The repository.
        base_model (`str`, *optional*): Hub id of the base, for an adapter that may not name it.
        options ([`PushOptions`]): Options of the push.
        include_statistics (`bool`, *optional*): Push the input statistics of a vector that has some, too.
    """

    def push(folder: Path) -> None:
        vector = DistributionVector(Resolved.local(folder), verify=False)
        # They are gathered at the end of the run, so the vectors before have none.
        has_statistics = (folder / INPUT_STATISTICS).is_file()
        vector.push_to_hub(
            repo_id, base_model=base_model, include_statistics=include_statistics and has_statistics, **options
        )

    return push
