"""A recipe that was opened: its base and its vectors are here, and can be merged at any coefficients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.base_model import Base
from dem_hub.files.folders import check_target
from dem_hub.hub.remote import RemoteWeights
from dem_hub.merging.base_quantization import BaseQuantization
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.dequantized_base import dequantized, recorded
from dem_hub.merging.merge import Merge
from dem_hub.vectors.vector import DistributionVector


@dataclass(frozen=True)
class OpenedRecipe:
    """A recipe with its base and its vectors, in the recipe's order."""

    recipe: DEMConfig
    base: Base
    vectors: tuple[DistributionVector, ...]
    folder: Path | None = None  # of the recipe's own files; `None` for a base with vectors

    @property
    def remotes(self) -> list[RemoteWeights]:
        """Weights that are still on the Hub. While there are any, a merge can be planned but not computed."""
        of_vectors = [vector.remote for vector in self.vectors]
        return [*self.base.remotes, *(remote for remote in of_vectors if remote is not None)]

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders that the sum is read from, by what they are."""
        return {**self.base.inputs, **{f"the vector '{vector.name}'": vector.folder for vector in self.vectors}}

    def merge(self, recipe: DEMConfig, *, allow_base_mismatch: bool = False) -> Merge:
        """Return the sum that a recipe over these vectors stands for.

        Args:
            recipe ([`DEMConfig`]): This recipe, or one with the same vectors and other coefficients or another
                rounding.
            allow_base_mismatch (`bool`, *optional*, defaults to `False`): Accept a base that the vectors were not
                taken from.

        Raises:
            What [`Merge.of`] raises.
        """
        merge = Merge.of(
            self.base,
            list(zip(self.vectors, recipe.coefficients.values(), strict=True)),
            rounding=recipe.rounding,
            seed=recipe.rounding_seed,
            allow_base_mismatch=allow_base_mismatch,
        )
        if recipe.base_quantized is None:
            return merge
        return replace(merge, base=dequantized(self.base, recipe.base_quantized), origin=merge.base)

    def with_changes(self, changes: Mapping[str, Any]) -> "OpenedRecipe":
        """Return the same base and vectors with other fields of the recipe; `None` as a value keeps the recipe's.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a value is not valid, or this base cannot have been quantized so.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        if "base_quantized" in given:
            given["base_quantized"] = recorded(BaseQuantization.of(given["base_quantized"]), self.base)
        return replace(self, recipe=replace(self.recipe, **given))

    def check_unchanged(self) -> None:
        """Check that all files are still those that were opened; whoever has read the sum calls this at the end.

        Raises:
            [`~dem_hub.errors.CheckpointError`]: If files of the base or of a vector were replaced or written to.
        """
        self.base.checkpoint.check_unchanged()
        for vector in self.vectors:
            vector.check_unchanged()

    def check_target(self, target: Path, kind: str) -> None:
        """Refuse to write a result over the base, a vector, or something of another kind than `kind`."""
        check_target(target, kind, self.inputs)
