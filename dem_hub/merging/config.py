"""Recipes: frozen records, checked when made, written as JSON.

Nothing here imports torch or transformers, so that a recipe can be read and checked at once.
"""

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack, get_args

from dem_hub.defaults import Rounding
from dem_hub.errors import CoefficientError, ConfigError, MissingDependencyError, NotFoundError, refuse
from dem_hub.files.atomic import atomic_folder, write_text
from dem_hub.files.folders import RECIPE, check_target
from dem_hub.files.names import CARD, PERPLEXITY_PLOT, PROVENANCE_CONFIG, RECIPE_CONFIG
from dem_hub.files.strict_json import (
    FORMAT_VERSION,
    as_mapping,
    check_inside,
    check_version,
    dump_json,
    parse_json,
    read_record,
)
from dem_hub.hub.cards import render
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.download import copy_side_files, resolve
from dem_hub.hub.listing import licenses
from dem_hub.hub.references import COMMIT, REPO_ID, BaseRecord, VectorSource
from dem_hub.merging.cards import recipe_card
from dem_hub.merging.coefficients import Coefficient, check_coefficient
from dem_hub.plotting import plot_perplexities
from dem_hub.vectors.publishing import public_base, public_vector

VECTORS = "vectors"  # where a recipe keeps vectors of its own
HERE = "."  # the `repo_id` of a vector in the recipe's own repository

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


@dataclass(frozen=True)
class VectorRecord:
    """One vector of a recipe: where it is, what it must be, and its coefficient, or one for each group of its tensors."""

    repo_id: str
    coefficient: Coefficient
    commit: str | None = None
    subfolder: str = ""
    sha256: str | None = None
    codec: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no merge could use."""
        check_inside(self.subfolder, f"subfolder of vector '{self.repo_id}'")
        check_coefficient(self.coefficient, f"Vector '{self.repo_id}'")
        if isinstance(self.coefficient, Mapping):
            object.__setattr__(self, "coefficient", dict(self.coefficient))  # a copy, which the caller cannot change
        if self.commit is not None and not COMMIT.fullmatch(self.commit):
            raise ConfigError(
                f"Vector '{self.repo_id}' has commit '{self.commit}', which is not 40 hex digits. Pin the full commit."
            )

    @property
    def source(self) -> VectorSource:
        """The vector as something that can be opened."""
        return VectorSource(self.repo_id, self.commit, self.subfolder)


@dataclass(frozen=True)
class DEMConfig:
    """A recipe: base + sum of coefficient * vector, as a file of a few kB.

    `dtype` is the dtype to merge into (`None`: the base's own); `rounding` and `rounding_seed` say how the sum gets there;
    `architectures` is the base's; `search` holds how the coefficients were found.

    Example:

    ```python
    >>> from dem_hub import DEMConfig
    >>> from dem_hub.merging.config import BaseRecord, VectorRecord
    >>> recipe = DEMConfig(BaseRecord("org/base"), (VectorRecord("me/maths-vector", 0.4),))
    >>> recipe.coefficients
    {'me/maths-vector': 0.4}
    >>> recipe.with_coefficients({"me/maths-vector": 0.5}).coefficients
    {'me/maths-vector': 0.5}

    ```
    """

    base: BaseRecord
    vectors: tuple[VectorRecord, ...]
    dtype: str | None = None
    rounding: Rounding = "stochastic"
    rounding_seed: int = 0
    architectures: tuple[str, ...] = ()
    search: Mapping[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse unknown roundings and a vector named twice."""
        if self.rounding not in ROUNDINGS:
            raise ConfigError(f"rounding is '{self.rounding}'; it must be one of {', '.join(ROUNDINGS)}.")
        names = [
            canonical_name(name) for name in (str(VectorSource(v.repo_id, None, v.subfolder)) for v in self.vectors)
        ]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"Vectors named twice in one recipe: {', '.join(twice)}. Add their coefficients instead.")

    @property
    def coefficients(self) -> dict[str, Coefficient]:
        """The coefficient of each vector, by its name (`repo_id`, or `repo_id//subfolder`)."""
        return {str(VectorSource(v.repo_id, None, v.subfolder)): v.coefficient for v in self.vectors}

    def with_coefficients(self, coefficients: Mapping[str, Coefficient]) -> "DEMConfig":
        """The same recipe with other coefficients; vectors that are not named keep theirs.

        Raises:
            `CoefficientError`: a name that is no vector of this recipe.
            `ConfigError`: no mapping, or a coefficient that is not finite.
        """
        if not isinstance(coefficients, Mapping):
            raise ConfigError(
                f"coefficients are given by vector, {{{next(iter(self.coefficients), 'name')!r}: 0.5, ...}}, not {coefficients!r}."
            )
        coefficients = {canonical_name(name): value for name, value in coefficients.items()}
        known = {canonical_name(name): value for name, value in self.coefficients.items()}
        unknown = sorted(set(coefficients) - set(known))
        if unknown:
            raise CoefficientError(
                f"No vector of this recipe is called {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, known))}."
            )
        vectors = zip(known, self.vectors, strict=True)
        return replace(
            self, vectors=tuple(replace(v, coefficient=coefficients.get(name, v.coefficient)) for name, v in vectors)
        )

    def to_dict(self, folder: Path | None = None) -> dict[str, Any]:
        """The recipe as JSON data; paths of this machine are written relative to `folder`, so that both can move together."""
        data = {"model_type": "dem", **asdict(self)}
        for entry in (data["base"], *data["vectors"]):
            if entry["repo_id"] not in (None, HERE) and Path(entry["repo_id"]).is_dir():
                path = Path(entry.pop("repo_id")).resolve()
                entry["path"] = os.path.relpath(path, folder.resolve()) if folder else str(path)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str, home: "Path | VectorSource | None" = None) -> "DEMConfig":
        """Read a recipe. `home` is where it was read from, a folder or a repository; only in a folder may it name local paths.

        Raises:
            `ConfigError`: not a recipe, a newer version, an unknown or missing key, or a local path in a recipe from the Hub.
        """
        if data.get("model_type") != "dem":
            raise ConfigError(
                f"{where} has model_type '{data.get('model_type')}', not 'dem': it is a model, not a recipe."
            )
        check_version(data, where)
        body = {key: value for key, value in data.items() if key not in ("model_type", "transformers_version")}
        body["base"] = read_record(BaseRecord, _from_path(body.get("base"), where, home), f"{where}: base")
        body["vectors"] = tuple(
            read_record(VectorRecord, _from_path(entry, where, home), f"{where}: vector {number}")
            for number, entry in enumerate(body.get("vectors") or ())
        )
        body["architectures"] = tuple(body.get("architectures") or ())
        return read_record(cls, body, where)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the recipe as `config.json`, with the base's tokenizer, chat template and generation config beside it.

        Args:
            save_directory (`str` or `os.PathLike`): the folder; made where there is none, and a recipe that is there is replaced.

        Raises:
            `ConfigError`: the folder holds something else, see [`check_target`].
        """
        folder = Path(save_directory)
        check_target(folder, RECIPE)
        with atomic_folder(folder) as partial:
            if self.base.repo_id is not None:
                copy_side_files(self.base.source, partial)
            write_text(partial / RECIPE_CONFIG, dump_json(self.to_dict(folder)))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_vectors: bool = False,
        base_model: str | None = None,
        **options: Unpack[PushOptions],
    ) -> "CommitInfo":
        """Push the recipe with a card, the base's tokenizer, and a picture where there is something to show, as one commit.

        Args:
            repo_id (`str`): the repository; made where there is none.
            include_vectors (`bool`): put vectors that are folders of this machine into the same commit, below `vectors/`. Without it
                they must be on the Hub already.
            base_model (`str`, *optional*): Hub id of the base, where the recipe names a folder of this machine.
            options ([`PushOptions`]): as in [`DistributionVector.push_to_hub`].

        Returns:
            `CommitInfo`: of the Hub's client.

        Raises:
            `ConfigError`: it names folders of this machine; all of them are listed.
            `PushConflictError`: somebody else changed the same files meanwhile.
        """
        token = options.get("token")
        base = public_base(self.base, base_model, "recipe", token=token)
        records, files = _public_vectors(self.vectors, str(base.repo_id), include=include_vectors, token=token)
        public = replace(self, base=base, vectors=records)
        stated = licenses(
            dict.fromkeys([str(base.repo_id), *(v.repo_id for v in records if v.repo_id != HERE)]), token=token
        )

        def compose(head: Head) -> Change:
            shown = {
                str(VectorSource(head.repo_id if v.repo_id == HERE else v.repo_id, None, v.subfolder)): v.coefficient
                for v in records
            }
            card = recipe_card(head.repo_id, str(base.repo_id), shown, self.search, stated)
            recipe = dump_json(public.to_dict())
            written = {**files, RECIPE_CONFIG: recipe, CARD: render(card, head.read(CARD))}
            return Change(written, merged=frozenset({CARD, PERPLEXITY_PLOT}))

        with TemporaryDirectory() as scratch:
            copy_side_files(self.base.source, Path(scratch), HubOptions(token))
            _draw(self.search, Path(scratch))
            files |= {path.name: path for path in Path(scratch).iterdir()}
            return push(repo_id, compose, options, "Push the recipe")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] | VectorSource,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "DEMConfig":
        """Read a recipe from a folder or the Hub.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): a Hub id, or the folder of a recipe or of a merged model.
            revision, subfolder, token, cache_dir, local_files_only, force_download: as in transformers.

        Raises:
            `NotFoundError`: there is no recipe there.
            `ConfigError`: see [`DEMConfig.from_dict`].
        """

        source = VectorSource.parse(name_or_path, revision=revision, subfolder=subfolder)
        options = HubOptions(token, cache_dir, local_files_only, force_download)
        found = resolve(source, (RECIPE_CONFIG, PROVENANCE_CONFIG), options)
        for name in (PROVENANCE_CONFIG, RECIPE_CONFIG):
            path = found.folder / name
            if path.is_file():
                data = parse_json(path.read_bytes(), str(path))
                return cls.from_dict(
                    data, str(path), replace(source, revision=found.commit) if found.commit else found.folder
                )
        raise NotFoundError(f"'{source}' has no {RECIPE_CONFIG} with a recipe in it.")


def _public_vectors(
    vectors: Iterable[VectorRecord], base: str, *, include: bool, token: str | bool | None
) -> tuple[tuple[VectorRecord, ...], dict[str, Path | str]]:
    """The records as others can follow them, and the files of vectors that come along."""
    records: list[VectorRecord] = []
    files: dict[str, Path | str] = {}
    faults = []
    for record in vectors:
        if not record.source.is_local:
            records.append(record)
            continue
        if not include:
            faults.append(f"'{record.source}'")
            continue
        folder = Path(record.repo_id) / record.subfolder
        place = f"{VECTORS}/{folder.resolve().name}"
        if any(other.subfolder == place for other in records):
            raise ConfigError(f"Two vectors of this recipe are folders called '{folder.name}'. Rename one.")
        vector = public_vector(folder, base, token=token)
        files |= {f"{place}/{name}": content for name, content in vector.files.items()}
        records.append(replace(record, repo_id=HERE, commit=None, subfolder=place, sha256=vector.sha256))
    if faults:
        remedy = "Push them first, and name them by their ids; or let them come along: --include-vectors, in Python include_vectors=True."
        refuse(
            ConfigError,
            "This recipe names vectors that are folders of this machine, which nobody else has.",
            faults,
            remedy,
        )
    return tuple(records), files


def _draw(search: Mapping[str, Any] | None, folder: Path) -> None:
    """Perplexity before and after, where the search kept both and matplotlib is there."""
    if not search or not search.get("losses") or not search.get("base_losses"):
        return
    table = {
        name: {data: math.exp(loss) for data, loss in search[key].items()}
        for name, key in (("base", "base_losses"), ("this", "losses"))
    }
    with suppress(MissingDependencyError):
        plot_perplexities(table, folder / PERPLEXITY_PLOT, "Validation perplexity")


def canonical_name(name: str) -> str:
    """One spelling of a name: the same folder may be called by a relative path or an absolute one."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _from_path(data: object, where: str, home: Path | VectorSource | None) -> dict[str, Any]:
    entry = dict(as_mapping(data, f"{where}: base or vector"))
    folder = home if isinstance(home, Path) else None
    path = entry.get("path", entry.get("repo_id"))
    if path == HERE and home is not None:
        check_inside(entry.get("subfolder", ""), f"subfolder of a vector in {where}")
        if folder is not None:
            return {**entry, "repo_id": str(folder.resolve())}
        assert isinstance(home, VectorSource)
        inside = "/".join(part for part in (home.subfolder, entry.get("subfolder")) if part)
        return {**entry, "repo_id": home.repo_id, "commit": home.revision, "subfolder": inside}
    if folder is None and ("path" in entry or not REPO_ID.fullmatch(str(path))):
        raise ConfigError(
            f"{where} comes from the Hub and names the local path '{path}'. A shared recipe names Hub ids only."
        )
    if "path" in entry:
        assert folder is not None
        entry["repo_id"] = str((folder / entry.pop("path")).resolve())
    return entry
