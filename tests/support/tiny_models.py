"""Tiny seeded models, fine-tunes and vectors for the tests, and the dense references that expected values come from.

`Zoo` makes each of them once, when it is first asked for, as real transformers folders. The references never use the
package: they read safetensors and add in float64.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FAMILIES = ("llama-tied", "llama-untied", "gpt2", "bert")
DTYPES = ("bfloat16", "float16", "float32")
VOCABULARY = 64
STEP = 0.003  # the size of a fine-tune's changes, a tenth of the weights: coefficients of 0.3 fall between bf16's steps
RANK = 4


def build(family: str) -> Any:
    """Build a tiny model in float32, seeded by its family."""
    import transformers as t

    torch.manual_seed(sum(map(ord, family)))
    llama = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    if family in ("llama-tied", "llama-untied"):
        return t.LlamaForCausalLM(t.LlamaConfig(**llama, tie_word_embeddings=family == "llama-tied"))
    if family == "gpt2":
        ids = {"bos_token_id": 1, "eos_token_id": 2}
        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
        )
    if family == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**llama, num_local_experts=3, num_experts_per_tok=2))
    if family == "qwen2-moe":
        sizes = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
        return t.Qwen2MoeForCausalLM(t.Qwen2MoeConfig(**llama, **sizes, num_experts=11, num_experts_per_tok=2))
    bert = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return t.BertForMaskedLM(t.BertConfig(vocab_size=VOCABULARY, **bert))


def shake(model: Any, seed: int, rank: int | None = None) -> None:
    """Change a model in place: noise on every parameter, or low-rank changes of the weights of linear modules
    only.
    """
    from transformers.pytorch_utils import Conv1D

    generator = torch.Generator().manual_seed(seed)
    heads = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    linears = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and id(m) not in heads}
    with torch.no_grad():
        for parameter in model.parameters():
            if rank is None:
                parameter.add_(STEP * torch.randn(parameter.shape, generator=generator))
            elif id(parameter) in linears:
                rows, columns = parameter.shape
                factors = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
                parameter.add_(STEP * (factors[0] @ factors[1]) / rank**0.5)


def save_tokenizer(folder: Path) -> None:
    """Save a word-level tokenizer of the words w0 to w59, with a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    words = [*special.values(), *(f"w{number}" for number in range(VOCABULARY - len(special)))]
    words[0], words[3] = words[3], words[0]  # [PAD] is 0
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


def add_tokens(source: Path, target: Path, tokens: Sequence[str], **flags: bool) -> None:
    """Save the tokenizer of a folder into another one, with more tokens."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([AddedToken(token, **flags) for token in tokens])
    tokenizer.save_pretrained(target)


@dataclass(frozen=True)
class Models:
    """The folders of one family in one dtype: its base, a fine-tune of all parameters, and one of low rank on the
    linears.
    """

    base: Path
    full: Path
    low: Path


@dataclass
class Zoo:
    """A factory of models and vectors in one folder, each made once."""

    root: Path
    _made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def models(self, family: str, dtype: str = "bfloat16") -> Models:
        """The base and two fine-tunes."""
        return self._once((family, dtype), lambda: self._models(family, dtype))  # type: ignore[no-any-return]

    def vector(self, family: str, dtype: str = "bfloat16", kind: str = "dense") -> Path:
        """Return a saved vector: `dense` and `short` (bfloat16) of the full fine-tune, `lowrank` of the low one,
        `lossy` of the full one.
        """
        return self._once((family, dtype, kind), lambda: self._vector(family, dtype, kind))  # type: ignore[no-any-return]

    def adapter(self, family: str, dtype: str = "float32") -> Path:
        """Return a PEFT LoRA of all linears, rank 3, scale 2, as `save_pretrained` writes it."""
        return self._once((family, dtype, "adapter"), lambda: self._adapter(family, dtype))  # type: ignore[no-any-return]

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _models(self, family: str, dtype: str) -> Models:
        root = self.root / f"{family}-{dtype}"
        folders = Models(root / "base", root / "full", root / "low")
        for folder, seed, rank in ((folders.base, None, None), (folders.full, 1, None), (folders.low, 2, RANK)):
            model = build(family).to(getattr(torch, dtype))
            if seed is not None:
                model = model.float()  # shaken from where the base's dtype left it
                shake(model, seed, rank)
                model = model.to(getattr(torch, dtype))
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.max_length = 37  # something to know it by
            model.save_pretrained(folder)
        save_tokenizer(folders.base)
        return folders

    def _vector(self, family: str, dtype: str, kind: str) -> Path:
        from dem_hub import DistributionVector

        models = self.models(family, dtype)
        finetuned, options = {
            "dense": (models.full, {"codec": "dense", "dtype": "float32"}),
            "short": (models.full, {"codec": "dense", "dtype": "bfloat16"}),
            "lowrank": (models.low, {"codec": "lowrank", "rank": RANK}),
            "lossy": (models.full, {"codec": "lowrank", "rank": RANK}),
        }[kind]
        folder = self.root / f"{family}-{dtype}" / f"vector-{kind}"
        DistributionVector.extract(models.base, finetuned, **options).save_pretrained(folder)
        return folder

    def _adapter(self, family: str, dtype: str) -> Path:
        folder = self.root / f"{family}-{dtype}" / "adapter"
        transposed = family == "gpt2"
        make_adapter(
            self.models(family, dtype).base,
            folder,
            target_modules="all-linear",
            r=3,
            lora_alpha=6,
            fan_in_fan_out=transposed,
        )
        return folder


def make_adapter(
    base: Path,
    folder: Path,
    seed: int = 0,
    train: Callable[[Any], None] | None = None,
    resize: int | None = None,
    **options: Any,
) -> Any:
    """Save a LoRA made by PEFT with random factors, and return the PEFT model in float32."""
    import transformers
    from peft import LoraConfig, get_peft_model

    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(base, dtype=torch.float32)
    if resize is not None:
        model.resize_token_embeddings(resize, mean_resizing=False)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
        if train is not None:
            train(adapted)
    adapted.save_pretrained(folder)
    return adapted


def reshard(
    source: Path, target: Path, shards: int = 1, change: Callable[[dict[str, Tensor]], None] | None = None
) -> Path:
    """Copy a model folder with its tensors changed and divided among several files."""
    tensors = load_tensors(source)
    if change is not None:
        change(tensors)
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if ".safetensors" not in path.name:
            (target / path.name).write_bytes(path.read_bytes())
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return target
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        save_file(part, target / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_vector(folder: Path, **changes: Any) -> None:
    """Set keys of a vector's config and update its checksum, as an attacker would."""
    from dem_hub.vectors.config import _checksum

    path = folder / "vector_config.json"
    data = json.loads(path.read_text()) | changes
    data.pop("checksum")
    path.write_text(json.dumps(data | {"checksum": _checksum(data)}))


def load_tensors(folder: Path, stem: str = "*") -> dict[str, Tensor]:
    """Return all tensors of a folder's safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob(f"{stem}.safetensors")):
        tensors |= load_file(file)
    return tensors


def read_deltas(vector: Path) -> dict[str, Tensor]:
    """Return the deltas of a vector in float64, computed from its files."""
    records = json.loads((vector / "vector_config.json").read_text())["tensors"]
    parts, factors = load_tensors(vector, "vector_model*"), load_tensors(vector, "adapter_model")
    deltas = {}
    for key, record in records.items():
        if record["module"]:
            prefix = f"base_model.model.{record['module']}"
            delta = factors[f"{prefix}.lora_B.weight"].double() @ factors[f"{prefix}.lora_A.weight"].double()
            deltas[key] = delta.T if record["transposed"] else delta
        elif f"{key}::left" in parts:
            deltas[key] = parts[f"{key}::left"].double() @ parts[f"{key}::right"].double()
        elif f"{key}::dense" in parts:
            delta = parts[f"{key}::dense"].double()
            if f"{key}::index" in parts:
                delta.view(-1)[parts[f"{key}::index"]] += parts[f"{key}::remainder"].double()
            deltas[key] = delta
    return deltas


def adapter_deltas(
    adapter: Path, base: Mapping[str, Tensor], scale: float, key: Callable[[str], str] = lambda name: name
) -> dict[str, Tensor]:
    """Return the deltas of a plain PEFT LoRA in float64, by the base's keys. It has one scale."""
    factors = load_tensors(adapter, "adapter_model")
    modules = {name.split(".lora_")[0] for name in factors}
    deltas = {}
    for module in modules:
        name = key(module.removeprefix("base_model.model.") + ".weight")
        delta = scale * factors[f"{module}.lora_B.weight"].double() @ factors[f"{module}.lora_A.weight"].double()
        transposed = any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        deltas[name] = delta.T if transposed else delta
    return deltas


def reference(base: Path, terms: Iterable[tuple[Mapping[str, Tensor], float]]) -> dict[str, Tensor]:
    """Return base + sum of coefficient * delta, in float64."""
    merged = {name: tensor.double() for name, tensor in load_tensors(base).items()}
    for deltas, coefficient in terms:
        for name, delta in deltas.items():
            merged[name] = merged[name] + coefficient * delta
    return merged


def neighbors(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the values of `dtype` just below and just above float64 values. Both are the value itself if `dtype` has
    it.
    """
    near = values.to(dtype)
    towards_low, towards_high = (_step(near, up) for up in (False, True))
    low = torch.where(near.double() <= values, near, towards_low)
    high = torch.where(near.double() >= values, near, towards_high)
    return low, high


def _step(values: Tensor, up: bool) -> Tensor:
    """Return the next value of the same dtype in one direction, by counting in its bits."""
    integer = torch.int16 if values.dtype.itemsize == 2 else torch.int32
    bits = values.contiguous().view(integer)
    stepped = torch.where((bits > 0) == up, bits + 1, bits - 1)  # sign and magnitude: counting up leads away from zero
    smallest = torch.tensor(1 if up else torch.iinfo(integer).min + 1, dtype=integer)
    return torch.where(values == 0, smallest, stepped).view(values.dtype)


def assert_around(merged: Tensor, exact: Tensor) -> None:
    """Check that every element is one of the two values of its dtype around the float64 result (float32: within 2
    ulp).

    The reference itself has an error of a few float64 ulp, which is visible where a sum cancels to almost nothing.
    """
    assert merged.shape == exact.shape
    error = 4 * torch.finfo(torch.float64).eps * exact.abs().max()
    low, high = neighbors(exact - error, merged.dtype)[0], neighbors(exact + error, merged.dtype)[1]
    if merged.dtype == torch.float32:
        low, high = _step(low, up=False), _step(high, up=True)
    outside = ~((merged >= low) & (merged <= high))
    assert not outside.any(), (merged[outside][:3], exact[outside][:3])
