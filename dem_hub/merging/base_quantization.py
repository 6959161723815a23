"""How a base was quantized while adapters were trained on it (QLoRA), as a recipe records it.

The fields have the names of transformers' `BitsAndBytesConfig`, so that a training script and a recipe can be compared
line by line. Nothing here imports torch or transformers: a recipe is read without them.
"""

from dataclasses import asdict, dataclass
from typing import Any

from dem_hub.errors import ConfigError

QUANT_TYPES = ("nf4", "fp4")

# Dtypes that bitsandbytes quantizes, and computes in.
_DTYPES = ("float32", "float16", "bfloat16")

# What may stand after the type in a text, and the field that it sets.
_SETTINGS = {"dtype": "dtype", "compute_dtype": "bnb_4bit_compute_dtype"}
_DOUBLE_QUANT = "double_quant"


@dataclass(frozen=True)
class BaseQuantization:
    """The quantization of a base in 4 bits by bitsandbytes, in blocks of 64 elements.

    Args:
        bnb_4bit_quant_type (`str`): `"nf4"` or `"fp4"`.
        bnb_4bit_use_double_quant (`bool`): Whether the scales of the blocks are quantized too.
        bnb_4bit_compute_dtype (`str`): Dtype to which weights are rounded when they are dequantized.
        dtype (`str`, *optional*): Dtype that the base was loaded in. Defaults to that of each tensor.
        llm_int8_skip_modules (`tuple[str, ...]`, *optional*): Modules that are not quantized. Defaults to those that
            transformers leaves out, such as the output embedding.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the type or a dtype is unknown.

    Example:

    ```python
    >>> from dem_hub.merging.base_quantization import BaseQuantization
    >>> BaseQuantization.of("nf4,double_quant,compute_dtype=bfloat16").bnb_4bit_use_double_quant
    True

    ```
    """

    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = "float32"
    dtype: str | None = None
    llm_int8_skip_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.bnb_4bit_quant_type not in QUANT_TYPES:
            raise ConfigError(
                f"The base's quantization is '{self.bnb_4bit_quant_type}'; known are {' and '.join(QUANT_TYPES)}, by "
                "bitsandbytes."
            )
        for name in (self.dtype, self.bnb_4bit_compute_dtype):
            if name not in (None, *_DTYPES):
                raise ConfigError(f"The dtype of a quantized base is '{name}'; it must be one of {', '.join(_DTYPES)}.")
        if self.llm_int8_skip_modules is not None:
            object.__setattr__(self, "llm_int8_skip_modules", tuple(self.llm_int8_skip_modules))  # JSON has lists

    @classmethod
    def of(cls, given: Any) -> "BaseQuantization":
        """Return what a caller has given: a text such as `"nf4,double_quant"`, or a config of transformers.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If it is neither, or has a setting that changes the weights otherwise.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            return cls._parse(given)
        if not getattr(given, "load_in_4bit", False):
            raise ConfigError(
                f"base_quantized is {given!r}; give 'nf4', 'fp4', or a BitsAndBytesConfig with load_in_4bit=True."
            )
        skipped = given.llm_int8_skip_modules
        return cls(
            bnb_4bit_quant_type=given.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=bool(given.bnb_4bit_use_double_quant),
            bnb_4bit_compute_dtype=str(given.bnb_4bit_compute_dtype).removeprefix("torch."),
            llm_int8_skip_modules=None if skipped is None else tuple(skipped),
        )

    @classmethod
    def _parse(cls, text: str) -> "BaseQuantization":
        quant_type, *settings = text.split(",")
        fields: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name == _DOUBLE_QUANT and not value:
                fields["bnb_4bit_use_double_quant"] = True
            elif name in _SETTINGS and value:
                fields[_SETTINGS[name]] = value
            else:
                raise ConfigError(
                    f"'{setting}' is no setting of a quantized base; known are {_DOUBLE_QUANT}, compute_dtype=DTYPE "
                    "and dtype=DTYPE, after a comma: nf4,double_quant."
                )
        return cls(quant_type, **fields)

    def __str__(self) -> str:
        words = [self.bnb_4bit_quant_type]
        if self.bnb_4bit_use_double_quant:
            words.append("double quantization")
        if self.dtype is not None:
            words.append(f"loaded in {self.dtype}")
        return ", ".join([*words, f"computed in {self.bnb_4bit_compute_dtype}"])

    @property
    def of_transformers(self) -> dict[str, Any]:
        """The arguments of transformers' `BitsAndBytesConfig`."""
        options = self.to_dict()
        del options["dtype"]
        if self.llm_int8_skip_modules is not None:
            options["llm_int8_skip_modules"] = list(self.llm_int8_skip_modules)
        return options

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON data."""
        return asdict(self)
