"""New tokens on the Hub and back: of vectors, recipes and merged models."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from dem_hub import DEMModel, DistributionVector, VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.planned import PlannedModel
from dem_hub.models.upload import push_merged
from tests.fake_hub.server import Hub
from tests.hub.round_trip import assert_same
from tests.support.new_tokens import finetune, ids_of, make_base
from tests.support.tiny_models import Zoo

BASE = "org/small"


def ids_on_hub(repo_id: str) -> dict[str, int]:
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(repo_id).get_vocab())


@pytest.fixture
def vectors(hub: Hub, zoo: Zoo, tmp_path: Path) -> list[str]:
    """Two vectors of fine-tunes with a token of their own, and a base that is on the Hub."""
    hub.add_user("ann", orgs=("org",))
    base = make_base(zoo.models("llama-tied", "float32").base, tmp_path / "base", 63)
    HfApi().create_repo(BASE)
    HfApi().upload_folder(repo_id=BASE, folder_path=base)
    names = []
    for number, tokens in enumerate((["<a>", "<both>"], ["<both>", "<b>"])):
        folder = finetune(base, tmp_path / f"finetuned-{number}", tokens, number)
        DistributionVector.extract(BASE, folder, codec="dense").save_pretrained(tmp_path / f"vector-{number}")
        names.append(str(tmp_path / f"vector-{number}"))
    return names


@pytest.mark.parametrize("local", [False, True], ids=["vectors on the Hub", "vectors that come along"])
def test_a_recipe_and_a_merged_model(hub: Hub, vectors: list[str], tmp_path: Path, local: bool) -> None:
    if not local:
        for number, name in enumerate(vectors):
            DistributionVector.from_pretrained(name).push_to_hub(f"ann/{number}")
            published = json.loads(hub.files(f"ann/{number}")["vector_config.json"])["tokens"]
            assert set(published) == ({"<a>", "<both>"}, {"<both>", "<b>"})[number]
        vectors = ["ann/0", "ann/1"]
    coefficients = dict(zip(vectors, (0.5, -0.25), strict=True))
    model = DEMModel.from_pretrained(BASE, vectors=coefficients)
    assert model.config.vocab_size == 66
    model.dem.save_pretrained(tmp_path / "recipe")
    ids = ids_of(tmp_path / "recipe")
    assert set(ids) == {*ids_of(tmp_path / "base"), "<a>", "<b>", "<both>"}
    model.dem.push_to_hub("ann/dem", include_vectors=local)
    assert ids_on_hub("ann/dem") == ids
    assert_same(model, DEMModel.from_pretrained("ann/dem"))
    if not local:
        push_merged(PlannedModel.of(open_base_and_vectors(VectorSource(BASE), coefficients)), "ann/merged")
        assert ids_on_hub("ann/merged") == ids
