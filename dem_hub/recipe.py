"""A recipe opened: its base and its vectors found, fetched and known to be the ones it names, ready to be merged."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dem_hub.architecture import read_config, refuse_quantised
from dem_hub.base import Base
from dem_hub.config import PROVENANCE_CONFIG, RECIPE_CONFIG, DEMConfig, VectorRecord, is_recipe
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError, VectorNotFoundError, refuse
from dem_hub.hub import MODEL_FILES, HubOptions, resolve
from dem_hub.merging import Merge
from dem_hub.records import VectorCoefficients, VectorSource
from dem_hub.vector import DistributionVector


@dataclass(frozen=True)
class OpenedRecipe:
    """A recipe with its base and its vectors, in the recipe's order."""

    recipe: DEMConfig
    base: Base
    vectors: tuple[DistributionVector, ...]

    def merge(self, recipe: DEMConfig, *, allow_base_mismatch: bool = False) -> Merge:
        """The sum that a recipe over these vectors (this one, or one with other coefficients or rounding) stands for."""
        weighted = list(zip(self.vectors, recipe.coefficients.values(), strict=True))
        return Merge.of(self.base, weighted, rounding=recipe.rounding, seed=recipe.rounding_seed, allow_base_mismatch=allow_base_mismatch)


def open_base_and_vectors(base: VectorSource, vectors: VectorCoefficients, options: HubOptions | None = None) -> OpenedRecipe:
    """Open a base and vectors, and write down what they turned out to be.

    Args:
        base ([`VectorSource`]): the base.
        vectors (`Mapping[str, float]`): the coefficient of each vector, by id, folder or [`VectorSource`].
        options ([`HubOptions`], *optional*): how to reach the Hub.

    Raises:
        `ConfigError`: the base is a recipe, or a coefficient is not a finite number.
        Everything that opening a base or a vector raises.
    """
    options = options or HubOptions()
    found = resolve(base, MODEL_FILES, options)
    if is_recipe(found.folder):
        raise ConfigError(f"'{base}' is a recipe and names its own vectors. Load it without vectors, or name its base.")
    refuse_quantised(found.folder, "base")
    opened = Base(found)
    records = []
    members = _open_vectors((VectorSource.parse(name) for name in vectors), options)
    for vector, coefficient in zip(members, vectors.values(), strict=True):
        codec = vector.config.codec if vector.config is not None else "lora"
        source = vector.source
        place = source.repo_id if vector.commit else str(Path(source.repo_id).resolve())  # the caller may change directory
        records.append(VectorRecord(place, coefficient, vector.commit, source.subfolder, vector.sha256, codec))
    architectures = tuple(read_config(opened.folder).get("architectures") or ())
    return OpenedRecipe(DEMConfig(opened.record, tuple(records), architectures=architectures), opened, members)


def open_recipe(source: VectorSource, options: HubOptions | None = None, *, check_base: bool = True) -> OpenedRecipe:
    """Read a recipe and open what it names, and nothing else under the same name.

    Args:
        source ([`VectorSource`]): a folder or repository with a recipe, or with a merged model made from one.
        options ([`HubOptions`], *optional*): how to reach the Hub.
        check_base (`bool`): refuse a base that is not the one recorded.

    Raises:
        `VectorNotFoundError`: no recipe there.
        `BaseMismatchError`, `CheckpointError`: the base, or vectors, are not the ones that the recipe was made with.
    """
    options = options or HubOptions()
    found = resolve(source, (RECIPE_CONFIG, PROVENANCE_CONFIG), options)
    if not is_recipe(found.folder):
        raise VectorNotFoundError(
            f"'{source}' is not a recipe. Say which vectors to add to it: DEMModel.from_pretrained('{source}', vectors={{...}})."
        )
    recipe = DEMConfig.from_pretrained(replace(source, revision=found.commit or source.revision), **vars(options))
    return open_config(recipe, options, check_base=check_base)


def open_config(recipe: DEMConfig, options: HubOptions | None = None, *, check_base: bool = True) -> OpenedRecipe:
    """Open what a recipe names; see [`open_recipe`]."""
    options = options or HubOptions()
    found = resolve(recipe.base.source, MODEL_FILES, options)
    refuse_quantised(found.folder, "base")
    base = Base(found)
    if check_base and recipe.base.fingerprint not in (None, base.fingerprint):
        raise BaseMismatchError(
            f"The recipe's base is '{recipe.base}' (fingerprint {str(recipe.base.fingerprint)[:16]}), and what is there now has fingerprint "
            f"{base.fingerprint[:16]}: another model, or another revision. Restore it, or pass allow_base_mismatch=True."
        )
    vectors = _open_vectors((record.source for record in recipe.vectors), options)
    faults = [
        f"'{vector.name}' has sha256 {vector.sha256[:16]}, the recipe says {record.sha256[:16]}"
        for record, vector in zip(recipe.vectors, vectors, strict=True)
        if record.sha256 is not None and record.sha256 != vector.sha256
    ]
    if faults:
        refuse(CheckpointError, "Vectors changed since the recipe was made.", faults, "Restore them, or search the coefficients again.")
    return OpenedRecipe(recipe, base, vectors)


def _open_vectors(sources: Iterable[VectorSource], options: HubOptions) -> tuple[DistributionVector, ...]:
    """Open vectors side by side: their files are fetched and hashed meanwhile."""
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(lambda source: DistributionVector.from_pretrained(source, **vars(options)), sources))
