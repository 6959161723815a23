"""What was opened once is merged at any coefficients."""

from dem_hub import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from tests.support.tiny_models import Zoo


def test_merge_with_other_coefficients(zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.3, str(zoo.adapter("llama-tied")): -0.5}
    opened = open_base_and_vectors(VectorSource(str(zoo.models("llama-tied").base)), vectors)
    merge = opened.merge(opened.recipe.with_coefficients({str(zoo.vector("llama-tied")): 0.0}))
    assert sorted(term.coefficient for term in merge.terms) == [-0.5, 0.0]
