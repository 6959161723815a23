"""Opening a recipe: its base and its vectors are found, checked and fetched, and are then ready to be merged.

Everything that can be refused from headers is refused before weights are downloaded: another base, other shapes,
unknown codecs. What is downloaded is the commit whose headers were checked. The base and the vectors are opened in
parallel.
"""

import weakref
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config, refuse_quantized, refuse_quantized_tensors
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError, HubError, NotFoundError, refuse
from dem_hub.files.folders import is_recipe, lone_vector
from dem_hub.files.names import GENERATION_CONFIG, MODEL_FILES, PROVENANCE_CONFIG, RECIPE_CONFIG, VECTOR_FILES
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import Coefficient, VectorCoefficients
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.merged_base import MergedBase
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.records import VectorRecord
from dem_hub.merging.rounds import UNSAVED, Chain, chain_with, place_of
from dem_hub.numerics.threads import take_context
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.tokens import tokens_of
from dem_hub.vectors.vector import DistributionVector


def open_base_and_vectors(
    base: VectorSource,
    vectors: VectorCoefficients,
    options: HubOptions | None = None,
    *,
    check_base: bool = True,
    headers_only: bool = False,
) -> OpenedRecipe:
    """Open a base and vectors, and record in a recipe what was found: commits, hashes and the base's fingerprint.

    Args:
        base ([`VectorSource`]): The base.
        vectors (`Mapping[str, float]`): The coefficient of each vector, by id, folder or [`VectorSource`].
        options ([`HubOptions`], *optional*): Token, cache and so on.
        check_base (`bool`, *optional*, defaults to `True`): Refuse vectors of another base before weights are
            downloaded.
        headers_only (`bool`, *optional*, defaults to `False`): Download no weights. A merge can then be planned, and
            not computed.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a coefficient is not a finite number, or the base is a recipe that is based
            on itself.
        [`~dem_hub.errors.DemHubError`]: What opening a base or a vector raises.
    """
    sources = [VectorSource.parse(name) for name in vectors]
    finder = _Finder(options or HubOptions(), UNSAVED, "never" if headers_only else "now", check_base=check_base)
    opened = _open(base, sources, finder)
    records = tuple(
        record_of(vector, coefficient, opened.base)
        for vector, coefficient in zip(opened.vectors, vectors.values(), strict=True)
    )
    architectures = tuple(read_config(opened.base.folder).get("architectures") or ())
    recipe = DEMConfig(opened.base.record, records, architectures=architectures)
    return OpenedRecipe(recipe, opened.base, opened.vectors)


def open_recipe(
    source: VectorSource,
    options: HubOptions | None = None,
    *,
    check_base: bool = True,
    headers_only: bool = False,
) -> OpenedRecipe:
    """Read a recipe and open the base and the vectors that it names.

    Args:
        source ([`VectorSource`]): Folder or repository of a recipe, or of a merged model that was made from one.
        options ([`HubOptions`], *optional*): Token, cache and so on.
        check_base (`bool`, *optional*, defaults to `True`): Refuse a base other than the recorded one.
        headers_only (`bool`, *optional*, defaults to `False`): Download no weights; see [`open_base_and_vectors`].

    Raises:
        [`~dem_hub.errors.NotFoundError`]: If there is no recipe.
        [`~dem_hub.errors.ConfigError`]: If the source is a vector, or the recipe is not valid.
        [`~dem_hub.errors.BaseMismatchError`]: If the base has changed since the recipe was made.
        [`~dem_hub.errors.CheckpointError`]: If a vector has changed since the recipe was made.
    """
    options = options or HubOptions()
    # The generation config is asked for here, so that a load looks for the recipe once.
    resolved = resolve(source, (RECIPE_CONFIG, PROVENANCE_CONFIG, GENERATION_CONFIG), options)
    vector_kind = lone_vector(resolved.folder)
    if vector_kind:
        raise ConfigError(
            f"'{source}' is {vector_kind}, not a model. Name the base to put it on: dem-hub merge BASE --vector "
            f"{source}=COEFFICIENT, in Python from_pretrained(base, vectors={{'{source}': 0.5}})."
        )
    if not is_recipe(resolved.folder):
        raise NotFoundError(
            f"'{source}' is not a recipe. Say which vectors to add to it: --vector ID=COEFFICIENT, in Python "
            f"vectors={{...}}."
        )
    recipe = _read_recipe(resolved)
    above = (place_of(resolved),)
    finder = _Finder(options, above, "never" if headers_only else "now", check_base=check_base)
    return replace(_open_config(recipe, finder), folder=resolved.folder)


def open_config(recipe: DEMConfig, options: HubOptions | None = None, *, check_base: bool = True) -> OpenedRecipe:
    """Open the base and the vectors of a recipe, and check that they are the recorded ones; see [`open_recipe`]."""
    return _open_config(recipe, _Finder(options or HubOptions(), UNSAVED, check_base=check_base))


def open_round(resolved: Resolved) -> MergedBase:
    """Open a recipe as a base: its own base and vectors, and theirs, down to a model.

    Args:
        resolved ([`Resolved`]): The recipe's folder. All that the recipe names is found with its options.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a recipe is based on itself, or too many are on top of each other.
        [`~dem_hub.errors.DemHubError`]: What [`open_recipe`] raises.
    """
    return _Finder(resolved.options, UNSAVED).open_round(resolved)


def _read_recipe(resolved: Resolved) -> DEMConfig:
    source = replace(resolved.source, revision=resolved.commit or resolved.source.revision)
    return DEMConfig.from_pretrained(source, **vars(resolved.options))


def _open_config(recipe: DEMConfig, finder: "_Finder") -> OpenedRecipe:
    sources = [record.source for record in recipe.vectors]
    opened = _open(recipe.base.source, sources, finder)
    if finder.check_base:
        _check_base(recipe, opened.base)
    _check_vectors(recipe, opened.vectors)
    # A recipe that was written by hand does not have the tokens of its vectors.
    records = tuple(
        replace(record, tokens=tokens_of(vector, opened.base) or None)
        for record, vector in zip(recipe.vectors, opened.vectors, strict=True)
    )
    return OpenedRecipe(replace(recipe, vectors=records), opened.base, opened.vectors)


def _check_base(recipe: DEMConfig, base: Base) -> None:
    """Refuse a base with another fingerprint than the recorded one. Without its weights a base has no fingerprint."""
    recorded = recipe.base.fingerprint
    if base.remotes or recorded is None or base.is_recorded(recipe.base):
        return
    raise BaseMismatchError(
        f"The recipe's base is '{recipe.base}' (fingerprint {short_hash(recorded)}), and what is there now has "
        f"fingerprint {short_hash(base.fingerprint)}: another model, or another revision. Restore it, or pass "
        "--allow-base-mismatch, in Python allow_base_mismatch=True."
    )


def _check_vectors(recipe: DEMConfig, vectors: Sequence[DistributionVector]) -> None:
    """Refuse vectors whose contents are not the recorded ones."""
    faults = []
    for record, vector in zip(recipe.vectors, vectors, strict=True):
        if record.sha256 is not None and record.sha256 != vector.sha256:
            faults.append(
                f"'{vector.name}' has sha256 {short_hash(vector.sha256)}, the recipe says {short_hash(record.sha256)}"
            )
    if faults:
        refuse(
            CheckpointError,
            "Vectors changed since the recipe was made.",
            faults,
            "Restore them, or search the coefficients again.",
        )


def record_of(vector: DistributionVector, coefficient: Coefficient, base: Base) -> VectorRecord:
    """Return what a recipe says of a vector at a coefficient."""
    source = vector.source
    name = source.repo_id
    if vector.commit is None:
        # The absolute path, because the caller may change the working directory.
        name = str(Path(name).resolve())
    tokens = tokens_of(vector, base) or None
    return VectorRecord(name, coefficient, vector.commit, source.subfolder, vector.sha256, vector.codec, tokens)


@dataclass(frozen=True)
class _Opened:
    """A base and vectors, each with all of its weights or with headers only."""

    base: Base
    vectors: tuple[DistributionVector, ...]


@dataclass(frozen=True)
class _Finder:
    """How the base and the vectors of one recipe are found and opened.

    `above` is the recipe, with the recipes that it is a base of. The recipes below it are always compared with what they
    record: only the caller's own recipe or vectors can be meant by `allow_base_mismatch`. `weights` says when those on
    the Hub are downloaded: those of a recipe that is a base come `later`, once what is above it is known to fit.
    """

    options: HubOptions
    above: Chain
    weights: Literal["now", "later", "never"] = "now"
    check_base: bool = True

    def find(self, source: VectorSource, patterns: tuple[str, ...], folder: Path) -> Resolved:
        """Find a base or a vector, without the weights if they are on the Hub; stand-ins of them go into a folder."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return resolve_headers(source, patterns, self.options, scratch=folder)
        except (HubError, HfHubHTTPError):
            if self.weights == "never":
                raise
            # Without the Hub the files may still be in the cache. If they are not, this error says what is wrong.
            return resolve(source, patterns, self.options)

    def download(self, part: Base | DistributionVector, patterns: tuple[str, ...]) -> Resolved | None:
        """Download the weights of the commit whose headers were checked; return `None` if they are here already."""
        if part.remote is None:
            return None
        return replace(resolve(part.remote.source, patterns, self.options), source=part.source)

    def open_base(self, resolved: Resolved) -> Base:
        """Open a base that was found; of a recipe, the headers alone of what it is merged from."""
        if is_recipe(resolved.folder):
            weights = self.weights if self.weights == "never" else "later"
            return replace(self, weights=weights).open_round(resolved)
        refuse_quantized(resolved.folder, "base")
        base = Base(resolved)
        refuse_quantized_tensors(base.checkpoint, resolved.folder, "base")
        return base

    def open_round(self, resolved: Resolved) -> MergedBase:
        """Open a recipe as the base of the last recipe above."""
        below = _Finder(self.options, chain_with(resolved, self.above), self.weights)
        return MergedBase(resolved, _open_config(_read_recipe(resolved), below))


def _open(base: VectorSource, vectors: Sequence[VectorSource], finder: _Finder) -> _Opened:
    """Open a base and vectors: first from headers, and, if these fit together, with weights from the Hub."""
    # The threads hash files, and must know as this one does whether remembered hashes count (`hashing_again`).
    with ExitStack() as stack, ThreadPoolExecutor(initializer=take_context, initargs=(copy_context(),)) as pool:
        folder = stack.enter_context(scratch_folder())
        opened = _from_headers(base, vectors, finder, folder, pool)
        if finder.weights != "now":
            # The sparse files that stand in for the weights are removed together with the base.
            weakref.finalize(opened.base, stack.pop_all().close)
            return opened
        if not opened.base.remotes and all(vector.remote is None for vector in opened.vectors):
            return opened
        all_deltas(opened.vectors, opened.base, allow_base_mismatch=not finder.check_base)
        return _with_weights(opened, finder, pool)


def _from_headers(
    base: VectorSource, vectors: Sequence[VectorSource], finder: _Finder, folder: Path, pool: Executor
) -> _Opened:
    """Open a base and vectors from their headers; what is on this machine is opened as it is."""
    patterns = [MODEL_FILES, *[VECTOR_FILES] * len(vectors)]
    find = partial(finder.find, folder=folder)
    resolved_base, *resolved_vectors = pool.map(find, [base, *vectors], patterns)
    return _Opened(finder.open_base(resolved_base), tuple(pool.map(_open_vector, resolved_vectors)))


def _with_weights(opened: _Opened, finder: _Finder, pool: Executor) -> _Opened:
    """Download the weights that are still on the Hub, and open again what they belong to."""
    parts = [opened.base, *opened.vectors]
    patterns = [MODEL_FILES, *[VECTOR_FILES] * len(opened.vectors)]
    resolved_base, *resolved_vectors = pool.map(finder.download, parts, patterns)
    base = opened.base
    if resolved_base is not None:
        base = finder.open_base(resolved_base)
    elif isinstance(base, MergedBase) and base.remotes:
        base = finder.open_round(base.recipe_source)
    return _Opened(base, tuple(pool.map(_reopen_vector, opened.vectors, resolved_vectors)))


def _open_vector(resolved: Resolved) -> DistributionVector:
    return DistributionVector(resolved, verify=True)


def _reopen_vector(vector: DistributionVector, resolved: Resolved | None) -> DistributionVector:
    if resolved is None:
        return vector
    return _open_vector(resolved)
