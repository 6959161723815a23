"""Opening a recipe: its base and its vectors are found, checked and fetched, and are then ready to be merged.

Everything that can be refused from headers is refused before weights are downloaded: another base, other shapes,
unknown codecs. What is downloaded is the commit whose headers were checked. The base and the vectors are opened in
parallel.
"""

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config, refuse_quantized, refuse_quantized_tensors
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError, HubError, NotFoundError, refuse
from dem_hub.files.folders import check_target, is_recipe, lone_vector
from dem_hub.files.names import GENERATION_CONFIG, MODEL_FILES, PROVENANCE_CONFIG, RECIPE_CONFIG, VECTOR_FILES
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.hub.remote import RemoteWeights
from dem_hub.merging.coefficients import Coefficient, VectorCoefficients
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.merge import Merge
from dem_hub.merging.records import VectorRecord
from dem_hub.numerics.threads import take_context
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.tokens import tokens_of
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
        remotes = [self.base.remote, *(vector.remote for vector in self.vectors)]
        return [remote for remote in remotes if remote is not None]

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
        return Merge.of(
            self.base,
            list(zip(self.vectors, recipe.coefficients.values(), strict=True)),
            rounding=recipe.rounding,
            seed=recipe.rounding_seed,
            allow_base_mismatch=allow_base_mismatch,
        )

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
        inputs = {"the base": self.base.folder}
        for vector in self.vectors:
            inputs[f"the vector '{vector.name}'"] = vector.folder
        check_target(target, kind, inputs)


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
        [`~dem_hub.errors.ConfigError`]: If the base is a recipe, or a coefficient is not a finite number.
        [`~dem_hub.errors.DemHubError`]: What opening a base or a vector raises.
    """
    sources = [VectorSource.parse(name) for name in vectors]
    opened = _open(base, sources, options or HubOptions(), check_base=check_base, headers_only=headers_only)
    records = tuple(
        record_of(vector, coefficient, opened.base)
        for vector, coefficient in zip(opened.vectors, vectors.values(), strict=True)
    )
    architectures = tuple(read_config(opened.base.folder).get("architectures") or ())
    recipe = DEMConfig(opened.base.record, records, architectures=architectures)
    return OpenedRecipe(recipe, opened.base, opened.vectors)


def open_recipe(
    source: VectorSource, options: HubOptions | None = None, *, check_base: bool = True, headers_only: bool = False
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
    recipe = DEMConfig.from_pretrained(replace(source, revision=resolved.commit or source.revision), **vars(options))
    opened = open_config(recipe, options, check_base=check_base, headers_only=headers_only)
    return replace(opened, folder=resolved.folder)


def open_config(
    recipe: DEMConfig, options: HubOptions | None = None, *, check_base: bool = True, headers_only: bool = False
) -> OpenedRecipe:
    """Open the base and the vectors of a recipe, and check that they are the recorded ones; see [`open_recipe`]."""
    sources = [record.source for record in recipe.vectors]
    opened = _open(
        recipe.base.source, sources, options or HubOptions(), check_base=check_base, headers_only=headers_only
    )
    if check_base:
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
    if base.remote is not None or recorded is None or base.is_recorded(recipe.base):
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


def _open(
    base: VectorSource, vectors: Sequence[VectorSource], options: HubOptions, *, check_base: bool, headers_only: bool
) -> _Opened:
    """Open a base and vectors: first from headers, and, if these fit together, with weights from the Hub."""
    # The threads hash files, and must know as this one does whether remembered hashes count (`hashing_again`).
    with ExitStack() as stack, ThreadPoolExecutor(initializer=take_context, initargs=(copy_context(),)) as pool:
        folder = stack.enter_context(scratch_folder())
        find = partial(_find, options=options, folder=folder, headers_only=headers_only)
        opened = _from_headers(base, vectors, find, pool)
        if headers_only:
            # The sparse files that stand in for the weights are removed together with the base.
            weakref.finalize(opened.base, stack.pop_all().close)
            return opened
        if opened.base.remote is None and all(vector.remote is None for vector in opened.vectors):
            return opened
        all_deltas(opened.vectors, opened.base, allow_base_mismatch=not check_base)
        return _with_weights(opened, options, pool)


def _from_headers(
    base: VectorSource,
    vectors: Sequence[VectorSource],
    find: Callable[[VectorSource, tuple[str, ...]], Resolved],
    pool: Executor,
) -> _Opened:
    """Open a base and vectors from their headers; what is on this machine is opened as it is."""
    patterns = [MODEL_FILES, *[VECTOR_FILES] * len(vectors)]
    resolved_base, *resolved_vectors = pool.map(find, [base, *vectors], patterns)
    return _Opened(_open_base(resolved_base), tuple(pool.map(_open_vector, resolved_vectors)))


def _with_weights(opened: _Opened, options: HubOptions, pool: Executor) -> _Opened:
    """Download the weights that are still on the Hub, and open again what they belong to."""
    parts = [opened.base, *opened.vectors]
    patterns = [MODEL_FILES, *[VECTOR_FILES] * len(opened.vectors)]
    resolved_base, *resolved_vectors = pool.map(partial(_download, options=options), parts, patterns)
    base = opened.base
    if resolved_base is not None:
        base = _open_base(resolved_base)
    return _Opened(base, tuple(pool.map(_reopen_vector, opened.vectors, resolved_vectors)))


def _find(
    source: VectorSource, patterns: tuple[str, ...], *, options: HubOptions, folder: Path, headers_only: bool
) -> Resolved:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return resolve_headers(source, patterns, options, scratch=folder)
    except (HubError, HfHubHTTPError):
        if headers_only:
            raise
        # Without the Hub the files may still be in the cache. If they are not, this error says what is wrong.
        return resolve(source, patterns, options)


def _download(part: Base | DistributionVector, patterns: tuple[str, ...], *, options: HubOptions) -> Resolved | None:
    """Download the weights of the commit whose headers were checked; return `None` if they are here already."""
    if part.remote is None:
        return None
    return replace(resolve(part.remote.source, patterns, options), source=part.source)


def _open_base(resolved: Resolved) -> Base:
    if is_recipe(resolved.folder):
        raise ConfigError(
            f"'{resolved.source}' is a recipe and names its own vectors. Load it without vectors, or name its base; "
            "a search goes on from it with --resume-from."
        )
    refuse_quantized(resolved.folder, "base")
    base = Base(resolved)
    refuse_quantized_tensors(base.checkpoint, resolved.folder, "base")
    return base


def _open_vector(resolved: Resolved) -> DistributionVector:
    return DistributionVector(resolved, verify=True)


def _reopen_vector(vector: DistributionVector, resolved: Resolved | None) -> DistributionVector:
    if resolved is None:
        return vector
    return _open_vector(resolved)
