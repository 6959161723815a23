"""A base on the tests' Hub, and a vector and a recipe on this machine to push there."""

import pytest
from huggingface_hub import HfApi

from dem_hub import DEMConfig, DEMModel, DistributionVector
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models

BASE = "org/base"


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """What `ann` does without dem_hub. `org/base` is a tied Llama that everybody can read."""
    return HfApi()


@pytest.fixture
def base(hub: Hub, api: HfApi, llama: Models) -> str:
    hub.add_user("ann", orgs=("org",))
    api.create_repo(BASE)
    (llama.base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    api.upload_folder(repo_id=BASE, folder_path=llama.base)
    (llama.base / "README.md").unlink()
    return BASE


@pytest.fixture
def vector(llama: Models) -> DistributionVector:
    return DistributionVector.extract(llama.base, llama.full, codec="dense")


@pytest.fixture
def recipe(base: str, vector: DistributionVector) -> DEMConfig:
    vector.push_to_hub("ann/maths", base_model=base)
    return DEMModel.from_pretrained(BASE, vectors={"ann/maths": 0.5}).dem.config
