"""What has to be so that a merge, a fine-tune and a base can be compared: one vocabulary, one tokenizer, classes that
predict tokens. All of it is told by small files, before weights are loaded.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from dem_hub.errors import AdapterError, ConfigError
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.scorable import refuse_not_scorable
from dem_hub.evaluation.windows import Window
from dem_hub.files.folders import ADAPTER
from dem_hub.files.names import ADAPTER_CONFIG
from dem_hub.files.strict_json import read_json
from dem_hub.hub.references import VectorSource
from dem_hub.models.named_model import NamedModel

# Tasks of PEFT whose models predict tokens. An adapter may have none.
_PREDICTING = ("CAUSAL_LM", "SEQ_2_SEQ_LM", None)


def base_of(merged: NamedModel, finetuned: NamedModel) -> VectorSource:
    """Return the base that a recipe or an adapter names.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If neither names one, or they name two.
    """
    named: dict[str, VectorSource] = {}
    recipe = merged.recipe
    if recipe is not None and recipe.base.repo_id is not None:
        named["the recipe's base"] = recipe.base.source
    if finetuned.adapter_or_vector == ADAPTER:
        config = read_json(finetuned.folder / ADAPTER_CONFIG, foreign=True)
        name = config.get("base_model_name_or_path")
        if isinstance(name, str) and name:
            named["the adapter's"] = VectorSource(name, config.get("revision"))
    if not named:
        raise ConfigError(
            f"'{merged}' is no recipe, and was not merged from one, so its base is not known, and with it what the "
            "fine-tune has gained. Name the base: --base, in Python base=."
        )
    if len({source.absolute.repo_id for source in named.values()}) > 1:
        names = " and ".join(f"{what} is '{source.repo_id}'" for what, source in named.items())
        raise ConfigError(
            f"{names[0].upper()}{names[1:]}. If they are the same, name one of them: --base, in Python base=. An "
            "adapter on another base than its own is another model."
        )
    return next(iter(named.values()))


def check_comparable(merged: NamedModel, finetuned: NamedModel, base: NamedModel) -> None:
    """Refuse models whose configs say that they cannot be compared."""
    models = {"the base": base, "the merge": merged}
    if finetuned.adapter_or_vector == ADAPTER:
        _check_adapter(finetuned)
    else:
        models["the fine-tune"] = finetuned
    for model in models.values():
        refuse_not_scorable(model.config)
    kinds = {bool(model.config.is_encoder_decoder) for model in models.values()}
    sizes = {vocabulary(model) for model in models.values()}
    if len(kinds) > 1 or len(sizes) > 1:
        described = [f"{what} '{model}' ({_described(model)})" for what, model in models.items()]
        raise ConfigError(
            f"The predictions of these models cannot be compared: {', '.join(described)}. Check their names."
        )


def _described(model: NamedModel) -> str:
    kind = "encoder and decoder" if model.config.is_encoder_decoder else "decoder"
    return f"{kind}, {vocabulary(model)} tokens"


def vocabulary(model: NamedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _check_adapter(adapter: NamedModel) -> None:
    """Refuse an adapter whose outputs are not one prediction for each token."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter.folder))
    if config.task_type not in _PREDICTING:
        raise AdapterError(f"The adapter '{adapter}' is for {config.task_type}, which predicts no tokens.")
    if config.is_prompt_learning:
        raise AdapterError(
            f"The adapter '{adapter}' is {config.peft_type.value}, which puts tokens of its own before the text. Its "
            "predictions cannot be compared with a merge's, which has no such tokens."
        )


def read_for_both(
    datasets: Mapping[str, Any], merged: NamedModel, finetuned: NamedModel, base: NamedModel, max_length: int
) -> dict[str, list[Window]]:
    """Return the windows of all data, once they are the same by the merge's tokenizer and by the fine-tune's."""
    first = next((model for model in (merged, finetuned, base) if model.has_tokenizer), merged)
    windows = {}
    reader = Reader.of_model(base.config, cache(first.tokenizer), max_length)
    for name, rows in datasets.items():
        windows[name] = reader.windows(rows)
        if not windows[name]:
            raise ConfigError(f"'{name}': there is nothing to score. It is empty, or no row has a token to predict.")
    if finetuned.has_tokenizer and finetuned is not first:
        other = Reader.of_model(base.config, cache(finetuned.tokenizer), max_length)
        for name, rows in datasets.items():
            _check_same(name, windows[name], other.windows(rows), (first, finetuned))
    return windows


def _check_same(
    name: str, windows: Sequence[Window], others: Sequence[Window], models: tuple[NamedModel, NamedModel]
) -> None:
    """Refuse data that two tokenizers, or their chat templates, read differently."""
    if windows == others:
        return
    pairs = zip(windows, others, strict=False)
    differing = next((one.document for one, other in pairs if one != other), min(len(windows), len(others)))
    raise ConfigError(
        f"'{name}': row {differing + 1} has other tokens by the tokenizer or the chat template of '{models[0]}' than "
        f"by that of '{models[1]}', so their predictions cannot be compared. Give both models the same files, or rows "
        "with input_ids."
    )
