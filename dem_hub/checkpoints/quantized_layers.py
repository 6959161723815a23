"""Which tensors of a checkpoint transformers quantizes with bitsandbytes.

transformers itself says so: its own quantizer is run on the model without memory for its tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.key_names import match_keys
from dem_hub.checkpoints.model_building import build
from dem_hub.errors import ConfigError, MissingDependencyError, refuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class QuantizedLayers:
    """The layers of a model that transformers quantizes.

    `is_transposed` has their keys on disk, and whether the weight is quantized as its transpose (GPT-2's Conv1D).
    `skipped` are the modules that were left out, as transformers names them.
    """

    is_transposed: Mapping[str, bool]
    skipped: tuple[str, ...]

    @classmethod
    def of(cls, base: Base, options: Mapping[str, Any]) -> "QuantizedLayers":
        """Ask transformers which layers of a base it quantizes.

        Args:
            base ([`Base`]): The base. Its weights are not read.
            options (`Mapping[str, Any]`): The arguments of `BitsAndBytesConfig`.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the base has no class in transformers, has no linear layers, or a layer
                is not one tensor on disk.
        """
        if base.architecture is None:
            raise ConfigError(
                f"'{base}' has no class in transformers without code of its own, so it is not known which of its "
                "layers were quantized. Leave base_quantized out."
            )
        model = build(base.folder)
        keys = {name: key for key, name in match_keys(model, base.checkpoint).names.items()}
        linear, skipped = _quantized(model, options)
        lost = [f"'{name}.weight'" for name in linear if f"{name}.weight" not in keys]
        if lost:
            refuse(
                ConfigError,
                f"Linear layers of '{base}' would be quantized that are no tensors of their own on disk: they are tied "
                "to others, or put together.",
                lost,
                "Name them in llm_int8_skip_modules, or leave base_quantized out.",
            )
        if not linear:
            raise ConfigError(f"transformers quantizes no layer of '{base}'. Leave base_quantized out.")
        is_transposed = {keys[f"{name}.weight"]: transposed for name, transposed in linear.items()}
        return cls(is_transposed, tuple(sorted(skipped)))


def _quantized(model: "PreTrainedModel", options: Mapping[str, Any]) -> tuple[dict[str, bool], list[str]]:
    """Return the names of the modules that transformers quantizes, each with whether its weight is transposed before,
    and the names of those that it leaves out.
    """
    try:
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError as error:
        raise MissingDependencyError(
            f"A quantized base needs bitsandbytes ({error}): pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    quantizer: Any = Bnb4BitHfQuantizer(BitsAndBytesConfig(load_in_4bit=True, **options), pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            source: Any = module.source_cls
            found[name] = issubclass(source, Conv1D)
    return found, list(quantizer.modules_to_not_convert)
