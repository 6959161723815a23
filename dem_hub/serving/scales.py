"""Found coefficients as llama.cpp takes them: one adapter for each vector, and a scale for each adapter.

llama-server adds `scale * B @ A` of each adapter, and a request may bring other scales. So coefficients change without
another export.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from dem_hub.errors import AdapterError, ConfigError, refuse
from dem_hub.merging.coefficients import coefficient_text
from dem_hub.merging.opened_recipe import OpenedRecipe

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Scales:
    """Files of adapters, each with its scale."""

    scales: tuple[tuple[Path, float], ...]

    @property
    def arguments(self) -> str:
        """The arguments of llama.cpp's programs.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a path has a character at which llama.cpp divides the list.
        """
        for path, _ in self.scales:
            if "," in str(path) or ":" in str(path):
                raise ConfigError(
                    f"'{path}' has ',' or ':' in it, where llama.cpp divides its arguments. Choose another."
                )
        return "--lora-scaled " + ",".join(f"{path}:{scale!r}" for path, scale in self.scales)

    @property
    def request(self) -> str:
        """The JSON of a request to llama-server that sets the scales. Adapters have numbers, in the order of the files."""
        return json.dumps({"lora": [{"id": place, "scale": scale} for place, (_, scale) in enumerate(self.scales)]})


def scales_of(opened: OpenedRecipe, folder: Path) -> Scales:
    """Return a file in a folder for each vector of a recipe, with its coefficient.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If a vector has a coefficient for each of several groups of its tensors.
    """
    faults = []
    scales: dict[Path, float] = {}
    for name, coefficient in opened.recipe.coefficients.items():
        if not isinstance(coefficient, int | float):
            faults.append(f"'{name}' has {coefficient_text(coefficient)}")
            continue
        scales[_file(name, folder, scales)] = float(coefficient)
    if faults:
        refuse(
            AdapterError,
            "llama.cpp takes one scale for each adapter, and these vectors have coefficients by group.",
            faults,
            "Export their sum as one adapter, without --scales.",
        )
    return Scales(tuple(scales.items()))


def alone(opened: OpenedRecipe, place: int) -> OpenedRecipe:
    """Return one vector of a recipe as a recipe of its own, with coefficient 1."""
    record = replace(opened.recipe.vectors[place], coefficient=1.0)
    return replace(opened, recipe=replace(opened.recipe, vectors=(record,)), vectors=(opened.vectors[place],))


def _file(name: str, folder: Path, taken: dict[Path, float]) -> Path:
    """Return a file for a vector: the last part of its name, with a number if that is taken."""
    stem = _UNSAFE.sub("-", name.rstrip("/").rpartition("/")[2]).strip(".-") or "vector"
    path = folder / f"{stem}.gguf"
    number = 2
    while path in taken:
        path = folder / f"{stem}-{number}.gguf"
        number += 1
    return path
