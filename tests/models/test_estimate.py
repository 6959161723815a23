"""The cost of a merge, known from headers."""

from pathlib import Path

import pytest

from dem_hub import DistributionVector
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models import estimate
from dem_hub.models.export import estimate_export
from dem_hub.models.planned import PlannedModel
from tests.support.tiny_models import Models


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "int8"}, {"dtype": "int4"}, {}], ids=str)
def test_the_timed_merge_has_the_rank_of_the_vectors(
    options: dict[str, str], llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever form the factors are stored; without a dtype, with signs of what they leave."""
    codec = "lowrank" if options else "lrsign"
    vector = DistributionVector.extract(llama.base, llama.full, codec=codec, rank=4, **options)
    vector.save_pretrained(tmp_path / "vector")
    ranks = []

    def timed(rank: int) -> float:
        ranks.append(rank)
        return 0.0

    monkeypatch.setattr(estimate, "_seconds_per_element", timed)
    opened = open_base_and_vectors(VectorSource(str(llama.base)), {str(tmp_path / "vector"): 0.5})
    estimate_export(PlannedModel.of(opened), tmp_path / "merged")
    assert ranks == [4]
