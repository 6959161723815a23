"""Each kind of LoRA, and a full fine-tune, on each architecture that people merge, tied and untied.

The reference is PEFT's model with the adapter beside the weights, not merged, in float64; of a full fine-tune, its own
logits.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import AdapterError
from tests.support.adapter_kinds import adapter_kinds, train
from tests.support.families import FAMILIES
from tests.support.tiny_models import shake

Refusal = tuple[type[Exception], str]
CASES = [(name, tied) for name, family in FAMILIES.items() for tied in family.ties]

# The change of one end of a tie is no change of the tensor.
ONE_END = (AdapterError, "is one tensor with another embedding")
TIED = dict.fromkeys(["input embedding", "output embedding", "saved embeddings"], ONE_END)

# PEFT does not tie all ends of these, also if `ensure_weight_tying` asks for it, and trains each for itself.
NOT_TIED = dict.fromkeys(["both embeddings", "tied saved embeddings"], ONE_END)

# What is refused besides, and by whom: anything but an AdapterError is PEFT's, or its model cannot run.
REFUSED: dict[str, dict[str, Refusal]] = {
    "bert-tied": NOT_TIED,
    "modernbert-tied": NOT_TIED,
    "llama4-tied": NOT_TIED,
    # Its encoder and its decoder read one embedding, whatever the head has.
    "t5": {
        "input embedding": ONE_END,
        "other embeddings": ONE_END,
        "both embeddings": ONE_END,
        "saved embeddings": ONE_END,
        "tied saved embeddings": (RuntimeError, "mat1 and mat2 shapes cannot be multiplied"),
    },
    "llama4": {"all linear": (AttributeError, "'tuple' object has no attribute 'dtype'")},
    "mamba": {
        "all linear": (ValueError, "Module 'out_proj' is incompatible with Mamba"),
        "attention": (ValueError, "Module 'out_proj' is incompatible with Mamba"),
        "convolutions": (ValueError, "Module 'conv1d' is incompatible with Mamba"),
    },
    "qwen3.5": {"convolutions": (ValueError, "Targeting a Conv1d with groups=64 and rank 2")},
    "whisper": {
        "convolutions": (AttributeError, "'Conv1d' object has no attribute 'stride'"),
        "other embeddings": (AttributeError, "'Embedding' object has no attribute 'num_embeddings'"),
    },
}

# What has to do with a tie, and the LoRA of most people. All others are tried once for each family.
OF_TIES = {
    "all linear",
    "input embedding",
    "output embedding",
    "both embeddings",
    "saved embeddings",
    "tied saved embeddings",
}

# A LoRA without an effect in PEFT, and so without training: the model reads the weight of the module past it.
IDLE = {("glm-4v", "other embeddings")}


@dataclass(frozen=True)
class Case:
    """One architecture: the folder of a base, the base in float32 and its logits, and how to load and run it."""

    family: str
    tied: bool
    folder: Path
    model: Any
    options: Mapping[str, Any]

    def load(self, vector: Path) -> Any:
        return DEMModel.from_pretrained(self.folder, vectors={str(vector): 1.0}, dtype=torch.float64, **self.options)

    def logits(self, model: Any) -> Tensor:
        with torch.no_grad():
            return model.eval()(**FAMILIES[self.family].inputs(torch.float64), return_dict=False)[0]


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{'tied' if tied else 'untied'}" for name, tied in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, tied = request.param
    folder = tmp_path_factory.mktemp(family)
    torch.manual_seed(0)
    model = FAMILIES[family].make(tied)
    shake(model, 0)  # some weights begin as zeros, behind which nothing shows
    model.save_pretrained(folder)
    options = {}
    if any("Experts" in type(module).__name__ for module in model.modules()):
        # The quick kernels for experts have no float64.
        options["experts_implementation"] = "eager"
    return Case(family, tied, folder, type(model).from_pretrained(folder, dtype=torch.float32, **options), options)


@pytest.fixture(autouse=True)
def without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save adapters without a card, which takes as long as all the rest of it."""
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)


def adapter(case: Case, folder: Path, options: Mapping[str, Any]) -> Tensor:
    """Save a LoRA, and return the logits of PEFT's model with it."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(case.model), LoraConfig(r=2, **copy.deepcopy(dict(options))))
    train(adapted)
    adapted.save_pretrained(folder)
    return case.logits(adapted.double())


def test_the_documentation_lists_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    _, _, section = page.partition("## Tested architectures")
    listed = []
    for line in re.findall(r"^\* \w+: (.*(?:\n  .*)*)", section, re.MULTILINE):
        listed += re.split(r",\s+", line)
    assert sorted(listed) == sorted(family.title for family in FAMILIES.values())


@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, about sizes that no real model has
def test_adapters_as_peft_applies_them(case: Case, tmp_path: Path, subtests: pytest.Subtests) -> None:
    kinds = adapter_kinds(case.model)
    refused = dict(REFUSED.get(case.family, {}))
    if case.tied:
        refused |= TIED | REFUSED.get(f"{case.family}-tied", {})
    assert refused.keys() <= kinds.keys()
    unchanged = case.logits(copy.deepcopy(case.model).double())
    for kind, options in kinds.items():
        if kind not in OF_TIES and case.tied != FAMILIES[case.family].ties[0]:
            continue
        with subtests.test(kind=kind):
            if kind in refused:
                error, message = refused[kind]
                with pytest.raises(error, match=message):
                    adapter(case, tmp_path / kind, options)
                    case.load(tmp_path / kind)
                continue
            expected = adapter(case, tmp_path / kind, options)
            if (case.family, kind) in IDLE:
                assert torch.equal(expected, unchanged)
                continue
            assert (expected - unchanged).abs().max() > 1e-4
            # Gemma computes its norms in float32, whatever the model's dtype is.
            torch.testing.assert_close(case.logits(case.load(tmp_path / kind)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_full_fine_tune(case: Case, tmp_path: Path) -> None:
    tuned = copy.deepcopy(case.model)
    shake(tuned, 1)
    tuned.save_pretrained(tmp_path / "tuned")
    DistributionVector.extract(case.folder, tmp_path / "tuned", codec="dense").save_pretrained(tmp_path / "vector")
    found = case.logits(case.load(tmp_path / "vector"))
    # A vector keeps the difference in float32, and Gemma computes its norms in float32.
    torch.testing.assert_close(found, case.logits(tuned.double()), rtol=1e-5, atol=1e-5)
