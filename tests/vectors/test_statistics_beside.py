"""Input statistics beside a vector: tied to its deltas, pushed on demand, and downloaded when they are asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DistributionVector, VectorStore
from dem_hub.errors import CheckpointError, ConfigError, NotFoundError
from dem_hub.files.names import ADAPTER_CONFIG, STATISTICS_FILES
from dem_hub.hub.preview import Preview, previews
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput
from dem_hub.vectors.statistics_beside import contents_of, read_statistics, tied_statistics
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Zoo, edit_json

NAMES = set(STATISTICS_FILES)
KINDS = ["dense", "low-rank", "adapter"]


def some_statistics(tokens: int = 40) -> InputStatistics:
    moments = Moments.of_diagonal(torch.tensor([0.25, 0.75]).double())
    return InputStatistics((LayerInput(("k", "q"), moments),), tokens, "0123456789abcdef")


@pytest.fixture
def make(zoo: Zoo, tmp_path: Path) -> Callable[..., DistributionVector]:
    """Make a vector of some kind in a folder, with statistics beside it."""

    def made(kind: str, name: str = "vector") -> DistributionVector:
        folder = tmp_path / name
        models = zoo.models("llama-tied")
        if kind == "adapter":
            shutil.copytree(zoo.adapter("llama-tied"), folder)
        elif kind == "low-rank":
            DistributionVector.extract(models.base, models.low, codec="lowrank", rank=3).save_pretrained(folder)
        else:
            shutil.copytree(zoo.vector("llama-tied"), folder)
        vector = DistributionVector.from_pretrained(folder)
        tied_statistics(some_statistics(), vector).save_pretrained(folder)
        return vector

    return made


@pytest.fixture
def ann(hub: Hub, zoo: Zoo) -> Hub:
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo("org/base")
    HfApi().upload_folder(repo_id="org/base", folder_path=zoo.models("llama-tied").base)
    return hub


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_of_the_deltas_whatever_the_base_is_called(make: Callable[..., DistributionVector], kind: str) -> None:
    vector = make(kind)
    contents, sha256 = contents_of(vector.folder), vector.sha256
    if (vector.folder / ADAPTER_CONFIG).is_file() and vector.config is None:
        edit_json(vector.folder / ADAPTER_CONFIG, base_model_name_or_path="org/base")
        renamed = DistributionVector.from_pretrained(vector.folder)
        assert renamed.sha256 != sha256
        assert contents_of(vector.folder) == contents
        assert read_statistics(renamed).tokens == 40
        edit_json(vector.folder / ADAPTER_CONFIG, lora_alpha=99)
        with pytest.raises(ConfigError, match="Gather them again"):
            read_statistics(DistributionVector.from_pretrained(vector.folder))
    else:
        assert read_statistics(vector).tokens == 40


def test_those_that_name_the_sha256_are_read(make: Callable[..., DistributionVector]) -> None:
    vector = make("adapter")
    edit_json(vector.folder / "input_statistics.json", vector=vector.sha256)
    assert read_statistics(vector).tokens == 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subfolder", ["", "maths"])
def test_a_push_takes_them_on_demand_alone(
    ann: Hub, make: Callable[..., DistributionVector], kind: str, subfolder: str
) -> None:
    vector = make(kind)
    prefix = f"{subfolder}/" if subfolder else ""
    seen: list[Preview] = []
    with previews(seen.append):
        vector.push_to_hub("ann/maths", base_model="org/base", subfolder=subfolder)
        assert not NAMES & {Path(name).name for name in ann.files("ann/maths")}
        vector.push_to_hub("ann/maths", base_model="org/base", subfolder=subfolder, include_statistics=True)
    assert [{prefix + name for name in NAMES} <= set(preview.sizes) for preview in seen] == [False, True]
    ann.forget_requests()
    pushed = DistributionVector.from_pretrained("ann/maths", subfolder=subfolder)
    assert not [request for request in ann.requests() if "input_statistics" in request.path]
    # The push has given the base of an adapter another name.
    assert (pushed.sha256 == vector.sha256) == (kind == "dense")
    assert read_statistics(pushed).tokens == 40
    # What is pushed next takes the place of all that was there.
    vector.push_to_hub("ann/maths", base_model="org/base", subfolder=subfolder)
    assert not NAMES & {Path(name).name for name in ann.files("ann/maths")}


def test_a_store_has_them_too(ann: Hub, make: Callable[..., DistributionVector], tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path / "store", "org/base")
    for kind in KINDS:
        store.add(kind, make(kind, kind))
    (tmp_path / "store" / "dense" / "input_statistics.json").unlink()
    store.push_to_hub("ann/vectors")
    assert not NAMES & {Path(name).name for name in ann.files("ann/vectors")}
    store.push_to_hub("ann/vectors", include_statistics=True)
    opened = VectorStore.from_pretrained("ann/vectors")
    assert [read_statistics(opened[kind]).tokens for kind in ("low-rank", "adapter")] == [40, 40]
    with pytest.raises(NotFoundError, match="'ann/vectors//dense' has no input statistics"):
        read_statistics(opened["dense"])
    again = VectorStore.create(tmp_path / "again", "org/base")
    again.add("low", opened["low-rank"])
    assert read_statistics(again["low"]).tokens == 40
    store.push_to_hub("ann/vectors")
    assert not NAMES & {Path(name).name for name in ann.files("ann/vectors")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_them(make: Callable[..., DistributionVector], kind: str, tmp_path: Path) -> None:
    make(kind).save_pretrained(tmp_path / "copy")
    assert read_statistics(DistributionVector.from_pretrained(tmp_path / "copy")).tokens == 40


def test_none_are_there(ann: Hub, make: Callable[..., DistributionVector]) -> None:
    vector = make("dense")
    for name in NAMES:
        (vector.folder / name).unlink()
    with pytest.raises(NotFoundError, match="has no input statistics"):
        read_statistics(vector)
    ann.forget_requests()
    with pytest.raises(ConfigError, match="No input statistics are in"):
        vector.push_to_hub("ann/maths", base_model="org/base", include_statistics=True)
    assert not ann.requests("POST")


@pytest.mark.parametrize("fault", ["stale", "damaged", "lost", "link"])
def test_what_is_wrong_is_neither_read_nor_pushed(
    ann: Hub, make: Callable[..., DistributionVector], fault: str, tmp_path: Path
) -> None:
    vector = make("dense")
    record, tensors = (vector.folder / name for name in STATISTICS_FILES)
    if fault == "stale":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"vector": "f" * 64}))
    elif fault == "damaged":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    elif fault == "lost":
        tensors.unlink()
    else:
        tensors.rename(tmp_path / "elsewhere")
        tensors.symlink_to(tmp_path / "elsewhere")
    ann.forget_requests()
    with pytest.raises((ConfigError, CheckpointError)):
        read_statistics(vector)
    with pytest.raises((ConfigError, CheckpointError)):
        vector.push_to_hub("ann/maths", base_model="org/base", include_statistics=True)
    assert not ann.requests("POST")
