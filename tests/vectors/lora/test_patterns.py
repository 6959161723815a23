"""Patterns of a stranger's adapter find what PEFT finds, in linear time, or are refused by name."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
from peft.utils.other import get_pattern_key, match_target_against_key

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import AdapterError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.vectors.lora.patterns import Patterns, full_match
from tests.support.tiny_models import Zoo, edit_json, make_adapter

NAMES = (
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.k_proj",
    "model.layers.1.mlp.experts.7.up_proj",
    "layers_1_q_proj",
    "q_proj",
    "lm_head",
)
ATOMS = ("q", "k", "_proj", r"\.", ".", "layers", "model", "1", "[qk]", "[^.]", r"\w", r"\d", "^", "$", r"\b", r"\B")
REPEATS = ("*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{0,2}?")
ENDLESS = (
    r"(\w|\w)*!",
    r"([\w.]+)+!",
    r"(a|a|\w)*!",
    r"(\w*\w*)*!",
    r"(.*)*!",
    r"(.*.*.*.*.*.*.*.*.*.*)!",
    "a{1000000000}",
)


def pattern(rng: random.Random) -> str:
    """A few atoms, groups and repeats. No repeat is within another, so that the reference takes no exponential time."""
    text = ""
    for _ in range(rng.randrange(1, 6)):
        atoms = "".join(rng.choices(ATOMS, k=rng.randrange(1, 3)))
        kind = rng.randrange(4)
        if kind == 0:
            atoms = f"({atoms}|{rng.choice(ATOMS)})"
        elif kind == 1:
            atoms = f"(?:{atoms}){rng.choice(REPEATS)}"
        text += atoms
    return text


def test_as_peft_matches() -> None:
    rng = random.Random(0)
    matched = 0
    for _ in range(6000):
        patterns = {pattern(rng): number for number in range(3)}
        ours = Patterns(patterns, "alpha_pattern")
        for name in NAMES:
            key = get_pattern_key(list(patterns), name)
            assert ours.first(name, -1) == patterns.get(key, -1), (patterns, name)
            matched += key in patterns
    assert matched > 1000


def test_whole_names_as_peft_matches_them() -> None:
    rng = random.Random(1)
    matched = 0
    for _ in range(3000):
        text = rng.choice(["", ".*"]) + pattern(rng) + rng.choice(["", ".*"])
        ours = full_match(text, "target_modules")
        for name in NAMES:
            expected = match_target_against_key(text, name) is not None
            assert ours(name) == expected, (text, name)
            matched += expected
    assert matched > 500


@pytest.mark.parametrize("endless", ENDLESS)
def test_what_takes_re_for_ever(endless: str) -> None:
    start = time.process_time()
    assert Patterns({endless: 1}, "alpha_pattern").first("x." * 50 + "self_attn_q_proj", 0) == 0
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (r"(?!.*k_proj).*", r"cannot be matched in linear time \(invalid perl operator"),
        (r"(q)\1", r"cannot be matched in linear time \(invalid escape"),
        ("((((a{1,999}){1,999}){1,999}){1,999}){1,999}", "cannot be matched in linear time"),
        ("(q", "it is not a regular expression of Python"),
        ("*", "it is not a regular expression of Python"),
        ("(?i)q", "it is not a regular expression of Python"),
        ("(" * 900, "it is not a regular expression of Python"),
        ("q{,3}", "it has '{,', which is not clear"),
        ("[[:alpha:]]", r"it has '\[:', which is not clear"),
        ("schl\u00fcssel", "other than printable ASCII"),
        ("q\n", "other than printable ASCII"),
        ("q" * 1001, "it has 1001 characters, and 1000 are allowed"),
    ],
)
def test_refused_patterns(refused: str, message: str) -> None:
    with pytest.raises(AdapterError, match=f"alpha_pattern has the pattern .*{message}.*extract the vector"):
        Patterns({refused: 1}, "alpha_pattern")


@pytest.mark.parametrize("name", ["model.schl\u00fcssel", "a\nb", "a{9999999999}"])
def test_refused_names(name: str) -> None:
    assert Patterns({}, "alpha_pattern").first(name, 4) == 4
    with pytest.raises(AdapterError, match="whose name is not plain ASCII"):
        Patterns({"q": 1}, "alpha_pattern").first(name, 4)


@pytest.fixture(scope="module")
def adapter(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patterns")
    make_adapter(zoo.models("llama-tied", "float32").base, folder, target_modules=["q_proj"], r=2)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_pattern": {"(q": 1}}, "alpha_pattern has the pattern"),
        ({"alpha_pattern": ["q"]}, r"alpha_pattern is \['q'\], which is not an object of numbers or null"),
        ({"alpha_pattern": {"q": True}}, "alpha_pattern is .*which is not an object of numbers"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', which is not a number"),
        ({"lora_alpha": None}, "lora_alpha is None, which is not a number"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head', which is not a list of texts"),
        ({"target_parameters": {"a": 1}}, "target_parameters is .*which is not a list of texts"),
        ({"use_rslora": "no"}, "use_rslora is 'no', which is not true or false"),
        ({"r": 8.5}, "r is 8.5, which is not a whole number"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, which is not a text"),
    ],
)
def test_settings_of_another_type(
    zoo: Zoo, adapter: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    import shutil

    shutil.copytree(adapter, tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", **settings)
    base = Base(resolve(VectorSource(str(zoo.models("llama-tied", "float32").base)), MODEL_FILES))
    with pytest.raises(AdapterError, match=message):
        DistributionVector.from_pretrained(tmp_path / "adapter").deltas(base)
