"""A recipe opened: its base and its vectors found, fetched and known to be the ones it names, ready to be merged."""

import weakref
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config, refuse_quantized
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError, HubError, NotFoundError, refuse
from dem_hub.files.folders import check_target, is_recipe, lone_vector
from dem_hub.files.names import MODEL_FILES, PROVENANCE_CONFIG, RECIPE_CONFIG, VECTOR_FILES
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.hub.remote import RemoteWeights
from dem_hub.merging.coefficients import VectorCoefficients
from dem_hub.merging.config import DEMConfig, VectorRecord
from dem_hub.merging.merge import Merge
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.vector import DistributionVector


@dataclass(frozen=True)
class OpenedRecipe:
    """A recipe with its base and its vectors, in the recipe's order."""

    recipe: DEMConfig
    base: Base
    vectors: tuple[DistributionVector, ...]

    @property
    def remotes(self) -> list[RemoteWeights]:
        """Weights that are still on the Hub; with any there, it can be planned with, and not merged."""
        return [
            remote for remote in (self.base.remote, *(vector.remote for vector in self.vectors)) if remote is not None
        ]

    def merge(self, recipe: DEMConfig, *, allow_base_mismatch: bool = False) -> Merge:
        """The sum that a recipe over these vectors (this one, or one with other coefficients or rounding) stands for."""
        weighted = list(zip(self.vectors, recipe.coefficients.values(), strict=True))
        return Merge.of(
            self.base,
            weighted,
            rounding=recipe.rounding,
            seed=recipe.rounding_seed,
            allow_base_mismatch=allow_base_mismatch,
        )

    def check_target(self, target: Path, kind: str) -> None:
        """Refuse to write what comes of this over its base or a vector, or over something of another kind; see `kinds.check_target`."""
        inputs = {
            "the base": self.base.folder,
            **{f"the vector '{vector.name}'": vector.folder for vector in self.vectors},
        }
        check_target(target, kind, inputs)


def open_base_and_vectors(
    base: VectorSource,
    vectors: VectorCoefficients,
    options: HubOptions | None = None,
    *,
    check_base: bool = True,
    headers_only: bool = False,
) -> OpenedRecipe:
    """Open a base and vectors, and write down what they turned out to be.

    Args:
        base ([`VectorSource`]): the base.
        vectors (`Mapping[str, float]`): the coefficient of each vector, by id, folder or [`VectorSource`].
        options ([`HubOptions`], *optional*): how to reach the Hub.
        check_base (`bool`): refuse vectors of another base before any weights are downloaded.
        headers_only (`bool`): leave weights on the Hub that are not here: enough to plan a merge, and not to make it.

    Raises:
        `ConfigError`: the base is a recipe, or a coefficient is not a finite number.
        Everything that opening a base or a vector raises.
    """
    sources = [VectorSource.parse(name) for name in vectors]
    opened, members = _open(base, sources, options or HubOptions(), check_base=check_base, headers_only=headers_only)
    records = []
    for vector, coefficient in zip(members, vectors.values(), strict=True):
        source = vector.source
        place = (
            source.repo_id if vector.commit else str(Path(source.repo_id).resolve())
        )  # the caller may change directory
        records.append(VectorRecord(place, coefficient, vector.commit, source.subfolder, vector.sha256, vector.codec))
    architectures = tuple(read_config(opened.folder).get("architectures") or ())
    return OpenedRecipe(DEMConfig(opened.record, tuple(records), architectures=architectures), opened, members)


def open_recipe(
    source: VectorSource, options: HubOptions | None = None, *, check_base: bool = True, headers_only: bool = False
) -> OpenedRecipe:
    """Read a recipe and open what it names, and nothing else under the same name.

    Args:
        source ([`VectorSource`]): a folder or repository with a recipe, or with a merged model made from one.
        options ([`HubOptions`], *optional*): how to reach the Hub.
        check_base (`bool`): refuse a base that is not the one recorded.
        headers_only (`bool`): see [`open_base_and_vectors`].

    Raises:
        `NotFoundError`: no recipe there.
        `BaseMismatchError`, `CheckpointError`: the base, or vectors, are not the ones that the recipe was made with.
    """
    options = options or HubOptions()
    found = resolve(source, (RECIPE_CONFIG, PROVENANCE_CONFIG), options)
    if kind := lone_vector(found.folder):
        raise ConfigError(
            f"'{source}' is {kind}, not a model. Name the base to put it on: dem-hub merge BASE --vector {source}=COEFFICIENT, in Python "
            f"from_pretrained(base, vectors={{'{source}': 0.5}})."
        )
    if not is_recipe(found.folder):
        raise NotFoundError(
            f"'{source}' is not a recipe. Say which vectors to add to it: --vector ID=COEFFICIENT, in Python vectors={{...}}."
        )
    recipe = DEMConfig.from_pretrained(replace(source, revision=found.commit or source.revision), **vars(options))
    return open_config(recipe, options, check_base=check_base, headers_only=headers_only)


def open_config(
    recipe: DEMConfig, options: HubOptions | None = None, *, check_base: bool = True, headers_only: bool = False
) -> OpenedRecipe:
    """Open what a recipe names; see [`open_recipe`]."""
    sources = [record.source for record in recipe.vectors]
    base, vectors = _open(
        recipe.base.source, sources, options or HubOptions(), check_base=check_base, headers_only=headers_only
    )
    if check_base and base.remote is None and recipe.base.fingerprint not in (None, base.fingerprint):
        raise BaseMismatchError(
            f"The recipe's base is '{recipe.base}' (fingerprint {short_hash(recipe.base.fingerprint)}), and what is there now has fingerprint "
            f"{short_hash(base.fingerprint)}: another model, or another revision. Restore it, or pass --allow-base-mismatch, "
            "in Python allow_base_mismatch=True."
        )
    faults = [
        f"'{vector.name}' has sha256 {short_hash(vector.sha256)}, the recipe says {short_hash(record.sha256)}"
        for record, vector in zip(recipe.vectors, vectors, strict=True)
        if record.sha256 is not None and record.sha256 != vector.sha256
    ]
    if faults:
        refuse(
            CheckpointError,
            "Vectors changed since the recipe was made.",
            faults,
            "Restore them, or search the coefficients again.",
        )
    return OpenedRecipe(recipe, base, vectors)


def _open(
    base: VectorSource, vectors: Sequence[VectorSource], options: HubOptions, *, check_base: bool, headers_only: bool
) -> tuple[Base, tuple[DistributionVector, ...]]:
    """Open a base and vectors side by side. Before weights come down, what their headers tell against it is refused."""
    wanted = [(base, MODEL_FILES), *((vector, VECTOR_FILES) for vector in vectors)]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="dem_hub-headers-")))
        pool = stack.enter_context(ThreadPoolExecutor())
        found = list(pool.map(lambda one: _look(one[0], one[1], options, scratch, headers_only=headers_only), wanted))
        opened, members = _opened(found, pool)
        if headers_only:
            weakref.finalize(opened, stack.pop_all().close)
        elif any(one.remote is not None for one in found):
            all_deltas(members, opened, allow_base_mismatch=not check_base)
            found = list(pool.map(lambda one, what: _fetch(one, what[1], options), found, wanted))
            opened, members = _opened(found, pool)
    return opened, members


def _look(
    source: VectorSource, files: tuple[str, ...], options: HubOptions, scratch: Path, *, headers_only: bool
) -> Resolved:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return resolve_headers(source, files, options, scratch=scratch)
    except (HubError, HfHubHTTPError):
        if headers_only:
            raise
        return resolve(source, files, options)  # which may find it on this machine, or tells what the matter is


def _fetch(found: Resolved, files: tuple[str, ...], options: HubOptions) -> Resolved:
    """With its weights, of the commit that was looked at."""
    if found.remote is None:
        return found
    return replace(resolve(found.remote.source, files, options), source=found.source)


def _opened(found: Sequence[Resolved], pool: Executor) -> tuple[Base, tuple[DistributionVector, ...]]:
    base, *vectors = found
    if is_recipe(base.folder):
        raise ConfigError(
            f"'{base.source}' is a recipe and names its own vectors. Load it without vectors, or name its base; a search goes on from it with --resume-from."
        )
    refuse_quantized(base.folder, "base")
    return Base(base), tuple(pool.map(lambda one: DistributionVector(one, verify=True), vectors))
