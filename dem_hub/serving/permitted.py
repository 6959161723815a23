"""The list of vectors and recipes that a server may mix, which its owner writes.

It is a JSON file. Whoever sends requests sees the short names alone, and can reach nothing that is not listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import FORMAT_VERSION, check_version, read_json, read_record
from dem_hub.serving.mixes import SHORT_NAME, Mix

# The environment variable with the path of the list.
VARIABLE = "DEM_HUB_MIXES"

# vLLM's own default of `--max-lora-rank`.
_MAX_RANK = 16

# The relative error up to which a mix is truncated to the rank. At 5 % of the norm of the sum, the rest of it is what
# counts; a mix that loses more is another model.
_MAX_ERROR = 0.05

# Mixes that a server keeps on disk at a time. A LoRA of rank 16 for a model of 7B has 80 MB in bfloat16, so that 256 of
# them take 20 GB.
_MAX_MIXES = 256


@dataclass(frozen=True)
class Permitted:
    """Vectors and recipes by short names, and the limits of what is made of them.

    Args:
        vectors (`Mapping[str, str]`): For each short name `ID[@REVISION][//SUBFOLDER]` or a folder.
        recipes (`Mapping[str, str]`, *optional*): The same for recipes, whose short names may be ids, too.
        base (`str`, *optional*): The base, if it is another revision than the one that its name stands for.
        max_rank (`int`, *optional*, defaults to 16): The server's `--max-lora-rank`. A mix of higher rank is truncated.
        max_error (`float`, *optional*, defaults to 0.05): The largest |truncated - exact| / |exact| of a mix; others are
            refused.
        max_mixes (`int`, *optional*, defaults to 256): How many mixes the server keeps; further ones are refused.
        format_version (`int`, *optional*): Version of the file's format.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a name is no short name, or a limit is not positive.
    """

    vectors: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    max_rank: int = _MAX_RANK
    max_error: float = _MAX_ERROR
    max_mixes: int = _MAX_MIXES
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check the names and the limits."""
        wrong = sorted(name for name in self.vectors if SHORT_NAME.fullmatch(name) is None)
        if wrong:
            raise ConfigError(
                f"{', '.join(map(shown, wrong))} cannot be names of vectors in a mix. Use letters, digits, '.', '_' "
                "and '-'."
            )
        twice = sorted(name for name, source in self.vectors.items() if list(self.vectors.values()).count(source) > 1)
        if twice:
            raise ConfigError(f"{', '.join(map(shown, twice))} stand for the same vector. Give it one name.")
        if not self.vectors and not self.recipes:
            raise ConfigError("It lists neither vectors nor recipes, so that there is nothing to mix.")
        if self.max_rank < 1 or self.max_mixes < 1 or self.max_error < 0:
            raise ConfigError(
                f"max_rank is {self.max_rank}, max_mixes {self.max_mixes} and max_error {self.max_error}; the first "
                "two are at least 1, and the last at least 0."
            )

    @classmethod
    def read(cls, path: Path) -> "Permitted":
        """Read a list.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If it cannot be read, or has a key that there is not.
        """
        try:
            data = read_json(path)
        except OSError as error:
            raise ConfigError(f"{VARIABLE} is '{path}', which cannot be read: {error.strerror}.") from error
        check_version({"format_version": FORMAT_VERSION, **data}, str(path))
        return read_record(cls, data, str(path))

    def sources(self, mix: Mix) -> dict[str, float]:
        """Return the coefficient of each vector of a mix, by what its short name stands for.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a name is not listed.
        """
        unknown = [name for name, _ in mix.coefficients if name not in self.vectors]
        if unknown:
            raise ConfigError(
                f"This server has no vectors {', '.join(map(shown, unknown))}; a mix may have "
                f"{', '.join(sorted(self.vectors)) or 'none'}."
            )
        return {self.vectors[name]: coefficient for name, coefficient in mix.coefficients}
