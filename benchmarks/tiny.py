"""Tiny seeded models, fine-tunes and LoRA adapters, for `digests.py`: the same bits in every run on one machine.

Nothing here uses dem_hub, so that no change of dem_hub changes these inputs. All folders are made below the working
directory, each when it is first asked for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

MODELS = Path("models")
STEP = 0.003  # the size of a fine-tune's changes, a tenth of the weights
RANK = 4  # of a fine-tune that changes little
NEW_TOKENS = 3
SPECIAL_TOKENS = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}

COUNTING = {"up": 1, "down": -1, "threes": 3}  # the fine-tunes for searches: what they add from token to token
COUNTING_VOCABULARY = 64
COUNTING_LENGTH = 20


@dataclass(frozen=True)
class Family:
    """An architecture at one size, the dtype of its checkpoints, and how PEFT is to adapt it."""

    seed: int
    dtype: torch.dtype
    build: Callable[[], Any]
    lora: dict[str, Any]


def llama_sizes(width: int, inner: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """Return the sizes that the configs of Llama and its relatives call by the same names."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def build_llama(width: int, inner: int, layers: int, vocabulary: int, *, tied: bool) -> Any:
    """Build a Llama whose output embedding is, or is not, its input embedding."""
    sizes = llama_sizes(width, inner, layers, vocabulary)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=tied))


def build_qwen2() -> Any:
    """Build a Qwen2: attention with biases, and matrices large enough that `auto` encodes them."""
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**llama_sizes(160, 200, 2, 256), tie_word_embeddings=False)
    )


def build_gpt2() -> Any:
    """Build a GPT-2, whose matrices are stored the other way round."""
    config = transformers.GPT2Config(
        vocab_size=256,
        n_embd=144,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def build_mixtral() -> Any:
    """Build a Mixtral, whose experts are several tensors on disk and one in memory."""
    config = transformers.MixtralConfig(**llama_sizes(32, 48, 2, 64), num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


def build_counter() -> Any:
    """Build the Llama that learns to count."""
    return build_llama(32, 48, 2, COUNTING_VOCABULARY, tied=True)


ALL_LINEAR = {"target_modules": "all-linear", "r": 3, "lora_alpha": 6}
FAMILIES = {
    "llama-tied": Family(1, torch.bfloat16, lambda: build_llama(32, 48, 2, 64, tied=True), ALL_LINEAR),
    "llama-untied": Family(2, torch.float16, lambda: build_llama(160, 224, 2, 256, tied=False), ALL_LINEAR),
    "qwen2": Family(3, torch.bfloat16, build_qwen2, ALL_LINEAR | {"use_rslora": True}),
    "gpt2": Family(4, torch.float32, build_gpt2, ALL_LINEAR | {"fan_in_fan_out": True}),
    "mixtral": Family(
        5,
        torch.bfloat16,
        build_mixtral,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "r": 4,
            "lora_alpha": 6,
        },
    ),
    # Its embedding is more than one block to merge, and its matrices are too wide for an exact singular value
    # decomposition.
    "llama-large": Family(6, torch.bfloat16, lambda: build_llama(1040, 1056, 1, 2100, tied=True), ALL_LINEAR),
}


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder, made if it is not there, without a trace in torch's own random numbers."""
    if not folder.is_dir():
        with torch.random.fork_rng():
            make(folder)
    return folder


def base_of(name: str) -> Path:
    """Return the folder of a family's base, with a tokenizer."""
    return made(MODELS / name / "base", lambda folder: make_base(name, folder))


def full_of(name: str) -> Path:
    """Return the folder of a fine-tune that changed every parameter."""
    return made(MODELS / name / "full", lambda folder: make_changed(name, folder, add_noise))


def low_of(name: str) -> Path:
    """Return the folder of a fine-tune that changed the linear modules, by matrices of low rank."""
    return made(MODELS / name / "low", lambda folder: make_changed(name, folder, add_low_rank))


def grown_of(name: str) -> Path:
    """Return the folder of a fine-tune that changed every parameter and has learnt new tokens."""
    return made(MODELS / name / "grown", lambda folder: make_changed(name, folder, add_tokens))


def adapter_of(name: str) -> Path:
    """Return the folder of a LoRA made by PEFT, with random factors."""
    return made(MODELS / name / "adapter", lambda folder: make_adapter(name, folder))


def counting_base() -> Path:
    """Return the folder of a model that has begun to learn to count in every way."""
    return made(MODELS / "counting" / "base", make_counting_base)


def counting_model(way: str) -> Path:
    """Return the folder of a fine-tune that was taught one way to count."""
    return made(MODELS / "counting" / way, lambda folder: make_counting_model(way, folder))


def make_base(name: str, folder: Path) -> None:
    """Write a base as its family's seed gives it."""
    family = FAMILIES[name]
    torch.manual_seed(family.seed)
    family.build().to(family.dtype).save_pretrained(folder)
    save_tokenizer(folder)


def make_changed(name: str, folder: Path, change: Callable[[Any, torch.Generator], None]) -> None:
    """Write a fine-tune: the base in float32, changed, and rounded to the base's dtype."""
    family = FAMILIES[name]
    model = load_model(base_of(name))
    with torch.no_grad():
        change(model, torch.Generator().manual_seed(family.seed))
    model.to(family.dtype).save_pretrained(folder)


def add_noise(model: Any, generator: torch.Generator) -> None:
    """Add normal noise to every parameter."""
    for parameter in model.parameters():
        parameter.add_(STEP * torch.randn(parameter.shape, generator=generator))


def add_low_rank(model: Any, generator: torch.Generator) -> None:
    """Add products of two thin matrices to the weights of linear modules, embeddings aside."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module not in embeddings:
            rows, columns = module.weight.shape
            left = torch.randn(rows, RANK, generator=generator)
            right = torch.randn(RANK, columns, generator=generator)
            module.weight.add_(STEP * (left @ right) / RANK**0.5)


def add_tokens(model: Any, generator: torch.Generator) -> None:
    """Add noise to every parameter, and rows to the embeddings."""
    torch.manual_seed(0)  # of the new rows
    model.resize_token_embeddings(model.config.vocab_size + NEW_TOKENS, mean_resizing=False)
    add_noise(model, generator)


def make_adapter(name: str, folder: Path) -> None:
    """Write an adapter whose factors, both of them, are random."""
    family = FAMILIES[name]
    adapted = get_peft_model(load_model(base_of(name)), LoraConfig(**family.lora))
    generator = torch.Generator().manual_seed(family.seed)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    sort_targets(folder / "adapter_config.json")


def sort_targets(path: Path) -> None:
    """Put an adapter's modules in order, which PEFT writes as Python's sets have them: another way in every
    process.
    """
    config = json.loads(path.read_text())
    for key in ("target_modules", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the words w0, w1, ..., with a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = list(SPECIAL_TOKENS.values())
    words += [f"w{number}" for number in range(COUNTING_VOCABULARY - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


def counting_rows(step: int, count: int, seed: int) -> list[list[int]]:
    """Return rows of token ids that go up or down by a step, with every fifth token wrong on average."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(COUNTING_VOCABULARY, (count, 1), generator=generator)
    ids = (starts + step * torch.arange(COUNTING_LENGTH)) % COUNTING_VOCABULARY
    wrong = torch.randint(COUNTING_VOCABULARY, ids.shape, generator=generator)
    is_wrong = torch.rand(ids.shape, generator=generator) < 0.2
    return torch.where(is_wrong, wrong, ids).tolist()


def make_counting_base(folder: Path) -> None:
    """Train the base of the models that count."""
    torch.manual_seed(7)
    model = build_counter()
    by_way = [counting_rows(step, 64, seed=5) for step in COUNTING.values()]
    mixed = [row for rows in zip(*by_way, strict=True) for row in rows]
    teach(model, mixed, steps=20, learning_rate=5e-3)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def make_counting_model(way: str, folder: Path) -> None:
    """Train a fine-tune on one way to count."""
    model = load_model(counting_base())
    teach(model, counting_rows(COUNTING[way], 256, seed=1), steps=24, learning_rate=1e-3)
    model.save_pretrained(folder)


def teach(model: Any, rows: list[list[int]], steps: int, learning_rate: float) -> None:
    """Train a model in place, on one thread, on which sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for number in range(steps):
        start = 16 * number % len(rows)
        batch = torch.tensor(rows[start : start + 16])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)


def load_model(folder: Path) -> Any:
    """Load a model as plain transformers, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
