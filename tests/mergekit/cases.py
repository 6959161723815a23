"""Configs of mergekit, tiny models to merge with them, and what mergekit makes of them.

`python -m tests.mergekit.cases` writes the models and mergekit's results into `reference/`, where mergekit is installed. The
results are in `results.safetensors`, each as `<case>/<tensor>`, with mergekit's version in the metadata.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

REFERENCE = Path(__file__).with_name("reference")
RESULTS = REFERENCE / "results.safetensors"

# Each config has `{folder}` where the models are.
_MODELS = """
models:
  - model: {folder}/maths
    parameters: {maths}
  - model: {folder}/chat
    parameters: {chat}
"""


def _config(method: str, maths: str, chat: str, more: str = "", base: str = "base_model: {folder}/base") -> str:
    models = _MODELS.replace("{maths}", maths).replace("{chat}", chat)
    return f"merge_method: {method}\n{base}\ndtype: float32\n{models}{more}\n"


_LAYERED = """
merge_method: task_arithmetic
base_model: {folder}/base
slices:
  - sources:
      - {model: {folder}/maths, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
      - {model: {folder}/chat, layer_range: [0, 3], parameters: {weight: 0.25}}
      - {model: {folder}/base, layer_range: [0, 3]}
dtype: float32
"""

_ADAPTERS = """
merge_method: linear
models:
  - {model: {folder}/base+{folder}/lora, parameters: {weight: 0.5}}
  - {model: {folder}/maths, parameters: {weight: 1.5}}
dtype: float32
"""

_BY_FILTER = "{weight: [{filter: self_attn, value: 0.9}, {filter: mlp, value: 0.2}, {value: 0.4}]}"
_GRADIENT = "{weight: [0.0, 0.5, 0.3, 1.0]}"

CASES = {
    "linear": _config("linear", "{weight: 0.5}", "{weight: 2.0}", base=""),
    "linear-with-base": _config("linear", "{weight: 0.5}", "{weight: 2.0}", "parameters: {weight: 0.25}"),
    "linear-not-normalized": _config("linear", "{weight: 0.7}", "{weight: 0.3}", "parameters: {normalize: false}", ""),
    "linear-adapter": _ADAPTERS,
    "arithmetic": _config("task_arithmetic", "{weight: 0.4}", "{weight: -0.3}"),
    "arithmetic-normalized": _config("task_arithmetic", "{weight: 0.4}", "{weight: 0.3}", "parameters: {normalize: true, lambda: 1.5}"),
    "arithmetic-int8": _config("task_arithmetic", '{weight: "4e-1"}', "{weight: 1}", "parameters: {int8_mask: true}\nout_dtype: float32"),
    "arithmetic-filters": _config("task_arithmetic", _BY_FILTER, "{weight: 0.1}"),
    "arithmetic-gradient": _config("task_arithmetic", _GRADIENT, "{}", "parameters: {weight: 0.2}"),
    "arithmetic-adapter-filters": _config("task_arithmetic", _BY_FILTER, "{weight: 0.1}").replace("/maths", "/base+{folder}/lora"),
    "arithmetic-slice": _LAYERED,
    "ties": _config("ties", "{weight: 0.6, density: 0.3}", "{weight: 0.5, density: 0.7}"),
    "ties-int8": _config("ties", "{weight: 1, density: 0.5}", "{weight: 0.5, density: 0.5}", "parameters: {int8_mask: true, normalize: false, lambda: 0.5}"),
    "ties-opposed": _config("ties", "{weight: 0.8, density: 0.5}", "{weight: -0.4}", "parameters: {density: 0.2}"),
    "dare-linear-all": _config("dare_linear", "{weight: 0.6, density: 1.0}", "{weight: 0.2}", "parameters: {normalize: true}"),
    "dare-ties-all": _config("dare_ties", "{weight: 0.6}", "{weight: 0.2}"),
    "union": _config("task_arithmetic", "{weight: 0.4}", "{weight: 0.3}", "tokenizer_source: union").replace("/chat", "/grown"),
    "union-linear": _config("linear", "{weight: 0.4}", "{weight: 0.3}", "tokenizer: {source: union}\nparameters: {weight: 1.0}").replace("/chat", "/grown"),
    "base-tokenizer": _config("task_arithmetic", "{weight: 0.4}", "{weight: 0.3}", "tokenizer_source: base"),
}  # fmt: skip


def write_config(text: str, path: Path, folder: Path = REFERENCE) -> Path:
    """Write a config for the models in a folder."""
    path.write_text(text.replace("{folder}", str(folder)))
    return path


def run_mergekit(config: Path, target: Path) -> dict[str, Tensor]:
    """Merge with mergekit, and return the tensors of the result."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    options = MergeOptions(lora_merge_cache=str(target / "adapters"), lora_merge_dtype="float32", write_model_card=False, quiet=True)  # fmt: skip
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(config.read_text())), str(target), options)
    tensors = {}
    for file in sorted(target.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def _build(tokens: int = 16) -> Any:
    import transformers as t

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2,
             "num_key_value_heads": 1, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    torch.manual_seed(7)
    return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=tokens, **sizes))


def _save_tokenizer(folder: Path, more: int = 0) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[BOS]", "[EOS]", *(f"w{number}" for number in range(13))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]")
    fast.add_tokens([f"<new{number}>" for number in range(more)])
    fast.save_pretrained(folder)


def _write_models() -> None:
    """Write a base, three fine-tunes, the last of them with new tokens, and an adapter."""
    from peft import LoraConfig, get_peft_model

    base = _build()
    base.save_pretrained(REFERENCE / "base")
    _save_tokenizer(REFERENCE / "base")
    for seed, name in enumerate(("maths", "chat", "grown"), start=1):
        model = _build()
        generator = torch.Generator().manual_seed(seed)
        if name == "grown":
            model.resize_token_embeddings(18, mean_resizing=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(REFERENCE / name)
        _save_tokenizer(REFERENCE / name, more=2 if name == "grown" else 0)
    torch.manual_seed(5)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = "base"
    adapted.save_pretrained(REFERENCE / "lora", save_embedding_layers=False)
    (REFERENCE / "lora" / "README.md").unlink()


def _main() -> None:
    _write_models()
    results = {}
    for name, text in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = write_config(text, Path(folder, "config.yml"))
            merged = run_mergekit(config, Path(folder, "merged"))
        results.update({f"{name}/{key}": tensor for key, tensor in merged.items()})
    save_file(results, RESULTS, {"mergekit": version("mergekit")})


if __name__ == "__main__":
    _main()
