"""What a config says, and what is refused in one by its key."""

from pathlib import Path

import pytest
import torch

from dem_hub.cli.app import main
from dem_hub.errors import ConfigError, DemHubError
from dem_hub.mergekit.document import Document, is_document
from dem_hub.mergekit.opening import open_document
from dem_hub.transformations.dare import drop
from tests.mergekit.cases import CASES, REFERENCE, write_config

PLAIN = CASES["arithmetic"]
TIES = CASES["ties"]


def opened(text: str, tmp_path: Path) -> object:
    return open_document(Document.read(write_config(text, tmp_path / "config.yml")))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("task_arithmetic", "slerp", ("merge_method is 'slerp'", "linear, task_arithmetic, ties")),
        ("task_arithmetic", "[ties]", ("merge_method",)),
        ("dtype: float32", "dtype: float64", ("dtype is 'float64'", "bfloat16")),
        ("dtype: float32", "out_dtype: int8", ("out_dtype is 'int8'",)),
        ("dtype: float32", "chat_template: auto", ("chat_template is 'auto'",)),
        ("dtype: float32", "modules: {}\nadd_noise: 3", ("modules is", "add_noise is 3")),
        ("dtype: float32", "tokenizer_source: me/other", ("tokenizer_source is 'me/other'", "base and union")),
        ("dtype: float32", "tokenizer: {source: union, pad_to_multiple_of: 8}", ("pad_to_multiple_of",)),
        ("dtype: float32", "tokenizer: {source: base}\ntokenizer_source: base", ("both",)),
        ("base_model: {folder}/base", "", ("base_model is not there", "task_arithmetic")),
        ("base_model: {folder}/base", "base_model: {folder}/base+{folder}/lora", ("adapter",)),
        ("{folder}/chat", "{folder}/maths", ("twice", "maths")),
        ("{folder}/chat", "{folder}/chat+{folder}/lora", ("adapter on", "dem-hub merge")),
        ("{folder}/chat", "a+b+c", ("a+b+c", "MODEL+ADAPTER")),
        ("{weight: -0.3}", "{weight: -0.3, gamma: 0.01}", ("models[1]: parameters.gamma", "density")),
        ("{weight: -0.3}", "{weight: much}", ("'weight' is 'much'",)),
        ("{weight: -0.3}", "{weight: true}", ("'weight' is True",)),
        ("{weight: -0.3}", "{weight: .nan}", ("'weight' is nan",)),
        ("{weight: -0.3}", "{weight: [1, {value: 2}]}", ("parameters.weight is",)),
        ("{weight: -0.3}", "{}", ("'weight' has no value", "lm_head.weight")),
        ("{weight: -0.3}", "{weight: [{filter: mlp, value: 1}]}", ("'weight' has no value",)),
        ("{weight: -0.3}", "{weight: [{filter: up_proj, value: 1}, {value: 0}]}", ("is 0 for", "1 for", "up_proj.weight")),
        ("{weight: -0.3}", "{weight: 1}\n    density: 1", ("models[1].density is 1",)),
        ("models:", "slices:", ("slices has 2 entries",)),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_its_key(
    old: str, new: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refusal:
        opened(PLAIN.replace(old, new), tmp_path)
    for word in words:
        assert word.replace("{folder}", str(REFERENCE)) in str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "density: 0.3",
            "density: [0.3, 0.5]",
            ("density of", "is 0.3 for 'lm_head.weight'", "0.4 for 'model.layers.1"),
        ),
        ("weight: 0.6", "weight: [{filter: mlp, value: 1}, {value: 2}]", ("weight of", "is 2 for", "1 for")),
        ("density: 0.3", "density: 0", ("density",)),
        ("dtype: float32", "parameters: {rescale: true}", ("rescale is true",)),
        ("merge_method: ties", "merge_method: dare_ties\nparameters: {rescale: false}", ("rescale is false",)),
        ("/chat", "/grown", ("<new", "ties")),
    ],
)
def test_ties_and_dare_are_refused_what_they_cannot_say(
    old: str, new: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refusal:
        opened(TIES.replace(old, new), tmp_path)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CASES["linear-not-normalized"].replace("0.7", "0.8"), ("sum to 1.1", "task_arithmetic")),
        (CASES["linear"].replace("0.5", "-2.0"), ("sum to 0",)),
        (CASES["linear-with-base"].replace("parameters: {weight: 0.25}", ""), ("'weight' has no value",)),
        (CASES["union"].replace("tokenizer_source: union", ""), ("tokenizer_source is not there", "<new0>")),
        (CASES["union"].replace("union", "base"), ("tokenizer_source is base", "<new0>")),
        (CASES["arithmetic-slice"].replace("[0, 3]", "[0, 2]"), ("layer_range", "[0, 2]", "[0, 3]")),
    ],
)
def test_other_refusals(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        opened(text, tmp_path)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("text", ["- 1", "models: []", "{", "merge_method: ties\nbase_model: x\nmodels: 3"])
def test_what_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DemHubError):
        Document.read(write_config(text, tmp_path / "config.yml"))


@pytest.mark.parametrize("arguments", [["--vector", "a=1"], ["--dry-run"]])
def test_arguments_that_do_not_go_with_a_config(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(PLAIN, tmp_path / "config.yml")
    assert main(["merge", str(config), *arguments, "-o", str(tmp_path / "merged")]) == 2
    assert "mergekit config" in capsys.readouterr().err


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "model.yml").mkdir()
    assert not is_document(str(tmp_path / "model.yml"))
    assert is_document("absent.yaml")
    assert not is_document("org/base")


def test_groups_say_what_filters_and_gradients_say(tmp_path: Path) -> None:
    filters = opened(CASES["arithmetic-filters"], tmp_path).recipe.coefficients  # type: ignore[attr-defined]
    gradient = opened(CASES["arithmetic-gradient"], tmp_path).recipe.coefficients  # type: ignore[attr-defined]
    maths, chat = (str((REFERENCE / name).resolve()) for name in ("maths", "chat"))
    assert filters == {maths: {"embedding": 0.4, "attention": 0.9, "mlp": 0.2, "other": 0.4}, chat: 0.1}
    by_layer = {"layers 0-0": 0.0, "layers 1-1": pytest.approx(0.4), "layers 2-2": 1.0, "rest": 0.0}
    assert gradient == {maths: by_layer, chat: 0.2}


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_keeps_the_elements_of_our_own_mask(method: str, tmp_path: Path) -> None:
    text = PLAIN.replace("task_arithmetic", method).replace("{weight: 0.4}", "{weight: 0.4, density: 0.5}")
    recipe = opened(text, tmp_path)
    merge = recipe.merge(recipe.recipe)  # type: ignore[attr-defined]
    plain = opened(PLAIN, tmp_path)
    key = "model.layers.1.mlp.up_proj.weight"
    base = merge.base.read(key)
    maths, chat = (plain_vector.decode(key, REFERENCE / "base") for plain_vector in plain.vectors)  # type: ignore[attr-defined]
    kept = drop(maths, 0.5, 0, f"{plain.vectors[0].sha256} {key}")  # type: ignore[attr-defined]
    parts = torch.stack([0.4 * kept, -0.3 * chat])
    if method == "dare_ties":
        elected = torch.where(parts.sum(0) >= 0, 1.0, -1.0)
        parts = parts * (parts.sign() == elected)
    rows = tuple(slice(0, size) for size in base.shape)
    merged = merge.tensor(key, rows, torch.device("cpu"))
    torch.testing.assert_close(merged, base + parts.sum(0), rtol=0, atol=1e-6)
    share = (kept != 0).float().mean()
    assert 0.25 < share < 0.75  # 96 elements: five standard deviations
