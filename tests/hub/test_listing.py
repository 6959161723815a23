"""The vectors of a base are found by the tags of their repositories."""

from pathlib import Path

from dem_hub import DEMConfig, DistributionVector, VectorStore
from dem_hub.hub.listing import list_vectors
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Zoo

BASE = "org/base"


def test_list_vectors(
    hub: Hub, recipe: DEMConfig, base: str, vector: DistributionVector, zoo: Zoo, tmp_path: Path
) -> None:
    store = VectorStore.create(tmp_path / "store", BASE)
    store.add("maths", vector)
    store.push_to_hub("ann/vectors")
    DistributionVector.from_pretrained(zoo.adapter("llama-tied", "bfloat16")).push_to_hub("ann/lora", base_model=base)
    recipe.push_to_hub("ann/dem")
    assert {found.repo_id: found.kind for found in list_vectors(BASE)} == {
        "ann/maths": "vector",
        "ann/vectors": "store",
        "ann/lora": "lora",
    }
    assert len(list_vectors(BASE, limit=1)) == 1
    assert list_vectors("org/other") == []
