"""Two small models of other architectures, with random weights, and their training: an encoder-decoder and a mixture of experts.

Both take the vocabulary of a tokenizer that exists, which is most of their parameters and of their time; the rest is as small as still
learns in a minute. Training takes windows of one length, each once, so that its tokens are those of the list and no more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from dem_hub.evaluation.windows import Window
from dem_hub.files.atomic import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["encoder-decoder", "mixture-of-experts"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WINDOW = 128  # tokens
BATCH_SIZE = 16  # windows of a step
SEED = 0
PRETRAINING_RATE = 3e-3
RATE = 1e-3  # of a fine-tune

SIZES: dict[Kind, dict[str, int]] = {
    "encoder-decoder": {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_heads": 4},
    "mixture-of-experts": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}


def is_seq2seq(kind: Kind) -> bool:
    """Whether labels are another sequence than the input."""
    return kind == "encoder-decoder"


def build(kind: Kind, vocabulary: int) -> "PreTrainedModel":
    """A small model with random weights."""
    from transformers import MixtralConfig, MixtralForCausalLM, T5Config, T5ForConditionalGeneration, set_seed

    set_seed(SEED)
    ids = {"vocab_size": vocabulary, "pad_token_id": 2, "eos_token_id": 2}
    if kind == "encoder-decoder":
        options = {
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
            "initializer_factor": 0.3,
        }
        return T5ForConditionalGeneration(T5Config(**ids, **SIZES[kind], **options))
    options = {
        "output_router_logits": True,  # the loss that keeps experts in balance
        "tie_word_embeddings": True,
    }
    config = MixtralConfig(**ids, **SIZES[kind], **options, bos_token_id=1, max_position_embeddings=2 * WINDOW)
    return MixtralForCausalLM(config)


def first_layers(folder: Path, target: Path, count: int) -> Path:
    """A model without its later layers, for a quick look: it speaks no more, and everything works as with the whole one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not target.is_dir():
        with atomic_folder(target) as temporary:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
            del model.model.layers[count:]
            model.config.num_hidden_layers = len(model.model.layers)
            model.save_pretrained(temporary)
            AutoTokenizer.from_pretrained(folder).save_pretrained(temporary)
    return target


def load(folder: Path) -> "PreTrainedModel":
    """A model of this study, by the class that its config names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32)


def trained(
    start: Callable[[], "PreTrainedModel"],
    windows: Sequence[Window],
    target: Path,
    tokenizer: "PreTrainedTokenizerBase",
    rate: float,
) -> Path:
    """Train on these windows, each once, and save in float32; a folder that exists is reused."""
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    if target.is_dir():
        return target
    set_seed(SEED)
    model = start()
    rows = [{"input_ids": torch.tensor(window.input_ids), "labels": torch.tensor(window.labels)} for window in windows]
    with atomic_folder(target) as temporary:
        arguments = TrainingArguments(
            output_dir=str(temporary), num_train_epochs=1, per_device_train_batch_size=BATCH_SIZE, learning_rate=rate,
            lr_scheduler_type="constant_with_warmup", warmup_steps=4, seed=SEED, use_cpu=True, dataloader_pin_memory=False,
            save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, where only data belongs
        trainer.train()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return target
