"""Settings of the callback that the Trainer's arguments rule out."""

from pathlib import Path

import pytest

from dem_hub import DEMCallback
from dem_hub.errors import ConfigError
from tests.support.tiny_models import Models
from tests.support.training_runs import arguments, begin, load


def test_nothing_to_go_by(llama: Models, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="save_strategy is 'no'(.|\n)*eval_strategy is 'no'(.|\n)*metric_for_best_model is None"
    ):
        begin(DEMCallback(when="best"), load(llama.base), arguments(tmp_path, save_strategy="no"))
