"""RegMean on real models, against its formula in float64 on whole matrices."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from torch import Tensor

from dem_hub import DEMModel, DistributionVector, VectorStore, regmean
from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.delta import to_dense
from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.evaluation.likelihood import likelihood
from dem_hub.evaluation.windows import Window
from dem_hub.hub.download import Resolved
from dem_hub.input_statistics.gathering import gather
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.numerics.slices import full_index
from dem_hub.transformations import own_data
from dem_hub.transformations.regmean import RIDGE, RegMean, weights_by_gain
from dem_hub.transformations.transformation import TensorDeltas
from tests.fake_hub.server import Hub
from tests.support.counting_models import Counters
from tests.support.tiny_models import Zoo


def some_data(seed: int) -> list[list[int]]:
    """Return rows of token ids, of which each seed has its own."""
    generator = torch.Generator().manual_seed(seed)
    low = 4 + 20 * seed
    return [torch.randint(low, low + 30, (12,), generator=generator).tolist() for _ in range(12)]


def delta_of(vector: DistributionVector, base: Path, key: str) -> Tensor:
    return vector.decode(key, base).double()


def statistics_of(base: Path, vector: Path, data: list[list[int]]) -> InputStatistics:
    model = DEMModel.from_pretrained(base, vectors={str(vector): 1.0}, dtype="float32")
    architecture = model.dem.open().base.architecture
    assert architecture is not None
    windows = [Window.of(row) for row in data]
    model.dem.set_coefficients({str(vector): 0.0})
    base_loss = likelihood(model, windows).loss
    model.dem.set_coefficients({str(vector): 1.0})
    gathered = gather(model, architecture, windows, base_loss=base_loss)
    return replace(gathered, vector=DistributionVector.from_pretrained(vector).sha256)


def expected_delta(delta: Tensor, place: int, grams: list[Tensor], weights: Sequence[float] = (1, 1)) -> Tensor:
    """Return delta w_i G_i (sum_j w_j G_j)^-1 with the ridge, as the paper writes it but for the weights."""
    mean = sum(float(gram.diagonal().mean()) for gram in grams) / len(grams)
    eye = torch.eye(len(grams[0]), dtype=torch.float64)
    ridged = [weight * (gram + RIDGE * mean * eye) for gram, weight in zip(grams, weights, strict=True)]
    return delta @ ridged[place] @ torch.linalg.inv(sum(ridged))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mixed(zoo: Zoo) -> dict[str, Any]:
    """A dense vector and a LoRA of one base, their RegMean, and statistics gathered apart."""
    base = zoo.models("llama-untied").base
    sources = [zoo.vector("llama-untied"), zoo.adapter("llama-untied")]
    data = [some_data(0), some_data(1)]
    transformed = regmean(base, dict(zip(map(str, sources), data, strict=True)), codec="dense")
    statistics = [statistics_of(base, source, rows) for source, rows in zip(sources, data, strict=True)]
    record = next(iter(transformed.values())).config.transformation["data"]
    return {
        "base": base,
        "sources": sources,
        "data": data,
        "transformed": list(transformed.values()),
        "statistics": statistics,
        "weights": [entry["weight"] for entry in record],
    }


@pytest.mark.parametrize("place", [0, 1])
def test_each_linear_layer_is_that_of_the_formula(mixed: dict[str, Any], place: int) -> None:
    architecture = Base(Resolved.local(mixed["base"])).architecture
    assert architecture is not None
    source = DistributionVector.from_pretrained(mixed["sources"][place])
    compared = 0
    for key, module in architecture.modules.items():
        delta = delta_of(source, mixed["base"], key)
        if module.kind == "embedding" or not delta.any():
            continue
        grams = [item.moments[key].dense() for item in mixed["statistics"]]
        expected = expected_delta(delta, place, grams, mixed["weights"])
        new = delta_of(mixed["transformed"][place], mixed["base"], key)
        # The dense vector is float32 between a base and a sum in float32: 1e-4 of a small delta.
        tolerance = 1e-5 if place == 1 else 1e-3
        torch.testing.assert_close(new, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
        compared += 1
    assert compared >= 14


def test_a_lora_stays_a_lora_of_its_rank(mixed: dict[str, Any]) -> None:
    from peft import PeftConfig

    config = mixed["transformed"][1].config
    assert {record.codec for record in config.tensors.values()} == {"lowrank"}
    assert {record.options["rank"] for record in config.tensors.values()} == {3}
    assert PeftConfig.from_pretrained(mixed["transformed"][1].folder).r == 3


@pytest.mark.parametrize("key", ["model.norm.weight", "model.embed_tokens.weight"])
def test_norms_and_embeddings_are_averaged(mixed: dict[str, Any], key: str) -> None:
    old = delta_of(DistributionVector.from_pretrained(mixed["sources"][0]), mixed["base"], key)
    new = delta_of(mixed["transformed"][0], mixed["base"], key)
    torch.testing.assert_close(new, old * mixed["weights"][0] / 2, rtol=1e-3, atol=1e-6)


def test_a_distribution_counts_by_what_its_vector_gains(crossed: Counters) -> None:
    """The gains are of passes of transformers alone. Half of the first data are what its vector made worse."""
    rows = {"first": crossed.data["first"][:8] + crossed.data["second"][:4], "second": crossed.data["second"]}
    made = regmean(crossed.base, {crossed.vectors[name]: of_name for name, of_name in rows.items()})
    gains = []
    for name, of_name in rows.items():
        ids = torch.tensor(of_name)
        losses = []
        for folder in (crossed.base, crossed.base.parent / f"full-{name}"):
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
            with torch.no_grad():
                losses.append(float(model(input_ids=ids, labels=ids).loss))
        gains.append(losses[0] - losses[1])
    assert min(gains) > max(gains) / 20 > 0
    expected = [2 * gain / sum(gains) for gain in gains]
    record = made[crossed.vectors["first"]].config
    assert record is not None and record.transformation is not None
    assert [entry["weight"] for entry in record.transformation["data"]] == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - 1) > 0.05


@pytest.mark.parametrize(
    ("gains", "weights"),
    [
        ([0.2, 0.2], [1, 1]),
        ([0.1, 0.3], [0.5, 1.5]),
        ([0.3, 0.1, 0.2], [1.5, 0.5, 1]),
        ([-1.0, 0.95], [0.1 / 1.05, 2 - 0.1 / 1.05]),
        ([-1.0, 0.0], [1, 1]),
        ([None, 0.3], [1, 1]),
    ],
    ids=["alike", "threefold", "three", "one loses", "none gains", "one is not known"],
)
def test_weights(gains: list[float | None], weights: list[float]) -> None:
    assert weights_by_gain(gains) == pytest.approx(weights)


def test_what_it_was_made_from_is_recorded(mixed: dict[str, Any]) -> None:
    record = mixed["transformed"][1].config.transformation
    assert (record["name"], record["place"], record["ridge"]) == ("regmean", 1, RIDGE)
    hashes = [DistributionVector.from_pretrained(source).sha256 for source in mixed["sources"]]
    assert record["vectors"] == [{"sha256": sha256} for sha256 in hashes]  # a folder's name stays on this machine
    assert [entry["tokens"] for entry in record["data"]] == [144, 144]


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_two_loras_equal_the_dense_formula_in_float64(zoo: Zoo, family: str) -> None:
    """To a millionth of the delta: only factors in float32 are rounded."""
    base = Base(Resolved.local(zoo.models(family, "float32").base))
    architecture = base.architecture
    assert architecture is not None
    vector = DistributionVector.from_pretrained(zoo.adapter(family))
    deltas = vector.deltas(base)
    gathered = [statistics_of(base.folder, vector.folder, some_data(seed)) for seed in range(2)]
    statistics = [replace(item, gain=gain) for item, gain in zip(gathered, (0.1, 0.4), strict=True)]
    transformation = RegMean(tuple(statistics), architecture)
    assert abs(transformation.weights[0] - 1) > 0.1
    for key, stored in deltas.items():
        tensors = TensorDeltas(base, key, (stored, stored), ("a", "b"), torch.device("cpu"))
        new = transformation.delta(0, tensors)
        assert new.left is not None and new.right is not None and new.dense is None
        index = full_index(base.checkpoint[key].shape)
        like = torch.zeros(base.checkpoint[key].shape)
        old = sum(
            scale * (delta.left.double() @ delta.right.double())
            for scale, delta in stored.decode(base.checkpoint.lazy(key), index)
        )
        grams = [item.moments[key].dense() for item in statistics]
        if architecture.modules[key].transposed:
            expected = expected_delta(old.T, 0, grams, transformation.weights).T
        else:
            expected = expected_delta(old, 0, grams, transformation.weights)
        got = new.left.double() @ new.right.double()
        assert float((got - expected).norm()) < 1e-6 * float(expected.norm())
        assert to_dense(new, like).shape == like.shape


def test_one_vector_alone_comes_back_unchanged(zoo: Zoo) -> None:
    name = str(zoo.adapter("llama-tied"))
    (alone,) = regmean(zoo.models("llama-tied").base, {name: some_data(0)}).values()
    assert alone.sha256 == DistributionVector.from_pretrained(name).sha256


def test_vectors_of_one_distribution_are_averaged(zoo: Zoo) -> None:
    """The same inputs for both: a layer's inputs differ a little, as they run through two fine-tunes."""
    base = zoo.models("llama-untied").base
    sources = [str(zoo.vector("llama-untied", kind="dense")), str(zoo.vector("llama-untied", kind="short"))]
    new = regmean(base, dict.fromkeys(sources, some_data(0)), codec="dense")
    key = "model.layers.1.mlp.up_proj.weight"
    old = delta_of(DistributionVector.from_pretrained(sources[0]), base, key)
    assert float((delta_of(new[sources[0]], base, key) - old / 2).norm()) < 0.02 * float(old.norm())


def test_statistics_beside_a_vector_take_the_place_of_data(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-tied").base
    data = [some_data(0), some_data(1)]
    sources = [tmp_path / "first", tmp_path / "second"]
    for source, rows in zip(sources, data, strict=True):
        DistributionVector.from_pretrained(zoo.adapter("llama-tied")).save_pretrained(source)
        statistics_of(base, source, rows).save_pretrained(source)
    by_data = regmean(base, dict(zip(map(str, sources), data, strict=True)))
    by_file = regmean(base, dict.fromkeys(map(str, sources)))
    key = "model.layers.0.mlp.down_proj.weight"
    for name in by_data:
        expected = delta_of(by_data[name], base, key)
        # The file has eigenvectors in bfloat16.
        difference = delta_of(by_file[name], base, key) - expected
        assert float(difference.norm()) < 0.01 * float(expected.norm())


def test_a_vector_with_neither_is_refused(zoo: Zoo) -> None:
    base = zoo.models("llama-tied").base
    names = [str(zoo.adapter("llama-tied")), str(zoo.vector("llama-tied"))]
    with pytest.raises((ConfigError, NotFoundError), match="input statistics"):
        regmean(base, {names[0]: some_data(0), names[1]: None})


def test_statistics_of_another_vector_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-tied").base
    other = DistributionVector.from_pretrained(zoo.vector("llama-tied"))
    other.save_pretrained(tmp_path)
    statistics_of(base, zoo.adapter("llama-tied"), some_data(0)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="and the vector there has"):
        regmean(base, {str(tmp_path): None, str(zoo.adapter("llama-tied")): some_data(1)})


def test_layers_that_no_token_reached_are_said(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    """An expert of eleven that a few tokens do not reach keeps an equal share of each vector."""
    base = zoo.models("qwen2-moe").base
    names = [str(zoo.vector("qwen2-moe")), str(zoo.vector("qwen2-moe", kind="short"))]
    new = regmean(base, {name: [[5, 5, 5]] for name in names}, codec="dense")
    assert "layers had no input in the data of any vector" in caplog.text
    assert f"few tokens: 3 of '{names[0]}', 3 of '{names[1]}'" in caplog.text
    assert "layers read more numbers" in caplog.text
    opened = Base(Resolved.local(base))
    assert opened.architecture is not None
    statistics = statistics_of(base, Path(names[0]), [[5, 5, 5]])
    key = min(opened.architecture.expert_keys - statistics.moments.keys())
    old = delta_of(DistributionVector.from_pretrained(names[0]), base, key)
    torch.testing.assert_close(delta_of(new[names[0]], base, key), old / 2, rtol=1e-3, atol=1e-6)


def test_an_expert_that_one_distribution_did_not_reach_is_left_to_the_others(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("mixtral").base
    opened = Base(Resolved.local(base))
    assert opened.architecture is not None
    folders = []
    for name in ("dense", "short"):
        DistributionVector.from_pretrained(zoo.vector("mixtral", kind=name)).save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
        statistics = statistics_of(base, tmp_path / name, some_data(0))
        if name == "short":
            key = min(opened.architecture.expert_keys & statistics.moments.keys())
            kept = tuple(item for item in statistics.inputs if key not in item.keys)
            statistics = replace(statistics, inputs=kept)
        statistics.save_pretrained(tmp_path / name)
    made = regmean(base, dict.fromkeys(folders), codec="dense")
    shares = []
    for folder in folders:
        old = delta_of(DistributionVector.from_pretrained(folder), base, key)
        shares.append(float((delta_of(made[folder], base, key) * old).sum() / old.square().sum()))
    # What the ridge leaves: about its size, and more in directions in which the other has few inputs too.
    assert shares[0] > 0.9
    assert shares[1] < 0.1


def test_what_a_source_costs(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping one costs no pass and no model; a new one costs a pass of the base and of its own over its own data."""
    base = zoo.models("llama-untied").base
    folders = []
    for number, kind in enumerate(("dense", "short", "lossy")):
        folder = tmp_path / kind
        DistributionVector.from_pretrained(zoo.vector("llama-untied", kind=kind)).save_pretrained(folder)
        statistics_of(base, folder, some_data(number % 2)).save_pretrained(folder)
        folders.append(str(folder))
    seen: list[Tensor] = []
    loads: list[Any] = []
    run = transformers.LlamaForCausalLM.forward
    load = DEMModel.from_pretrained

    def counted(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        seen.append(input_ids)
        return run(model, input_ids, **kwargs)

    def loaded(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counted)
    monkeypatch.setattr(DEMModel, "from_pretrained", loaded)
    assert len(regmean(base, dict.fromkeys(folders))) == 3
    assert len(regmean(base, dict.fromkeys(folders[1:]))) == 2
    assert (seen, loads) == ([], [])
    new = str(zoo.adapter("llama-untied"))
    rows = some_data(1)[:5]
    assert len(regmean(base, {**dict.fromkeys(folders), new: rows}, batch_size=2)) == 4
    assert sorted(row for ids in seen for row in ids.tolist()) == sorted(2 * rows)
    assert len(seen) == 6


def test_what_is_missing_is_missing_before_the_first_pass(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(*_: Any) -> InputStatistics:
        raise AssertionError("a pass")

    monkeypatch.setattr(own_data, "gather", gathered)
    names = [str(zoo.adapter("llama-tied")), str(zoo.vector("llama-tied"))]
    with pytest.raises(NotFoundError, match="input statistics"):
        regmean(zoo.models("llama-tied").base, {names[0]: some_data(0), names[1]: None})


@pytest.mark.parametrize("subfolder", ["", "//maths"])
def test_statistics_on_the_hub_take_the_place_of_data(hub: Hub, zoo: Zoo, tmp_path: Path, subfolder: str) -> None:
    """Those of an adapter whose base got another name by the push, in a repository of its own and in a store."""
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo("org/base")
    HfApi().upload_folder(repo_id="org/base", folder_path=zoo.models("llama-untied").base)
    folder = tmp_path / "maths"
    shutil.copytree(zoo.adapter("llama-untied"), folder)
    statistics_of(zoo.models("llama-untied").base, folder, some_data(0)).save_pretrained(folder)
    vector = DistributionVector.from_pretrained(folder)
    if subfolder:
        store = VectorStore.create(tmp_path / "store", "org/base")
        store.add("maths", vector)
        store.push_to_hub("ann/maths", include_statistics=True)
    else:
        vector.push_to_hub("ann/maths", base_model="org/base", include_statistics=True)
    names = ["ann/maths" + subfolder, str(zoo.vector("llama-untied"))]
    made = regmean("org/base", {names[0]: None, names[1]: some_data(1)})
    by_data = regmean("org/base", {names[0]: some_data(0), names[1]: some_data(1)})
    key = "model.layers.0.self_attn.q_proj.weight"
    expected = delta_of(by_data[names[0]], zoo.models("llama-untied").base, key)
    difference = delta_of(made[names[0]], zoo.models("llama-untied").base, key) - expected
    assert float(difference.norm()) < 0.01 * float(expected.norm())
