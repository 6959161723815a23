"""`DEMConfig`, the recipe: a base, vectors and coefficients, as a frozen record and as a JSON file.

A recipe is a `config.json` with `model_type: "dem"`, so that transformers' Auto classes and the Hub know what it is.
Nothing here imports torch or transformers: a recipe can be read, changed and pushed on a machine that has no model.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args

from dem_hub.defaults import Rounding
from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.files.atomic import atomic_folder, write_text
from dem_hub.files.folders import RECIPE, check_replaced, is_recipe
from dem_hub.files.json_types import fits, kind_text
from dem_hub.files.names import PROVENANCE_CONFIG, RECIPE_CONFIG
from dem_hub.files.plain_numbers import plain
from dem_hub.files.scratch import scratch_folder
from dem_hub.files.shown import shown
from dem_hub.files.side_files import side_files_of
from dem_hub.files.strict_json import FORMAT_VERSION, check_version, check_whole, dump_json, read_json, read_record
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import PushOptions
from dem_hub.hub.download import copy_side_files, resolve, side_files
from dem_hub.hub.foreign_text import printable_data, without_paths
from dem_hub.hub.references import BaseRecord, VectorSource
from dem_hub.merging.base_quantization import BaseQuantization
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.publishing import push_recipe
from dem_hub.merging.records import VectorRecord, named_twice, read_reference, write_reference
from dem_hub.merging.report import recipe_report
from dem_hub.merging.rounds import UNSAVED, chain_with
from dem_hub.merging.short_names import full_names
from dem_hub.merging.tokenizer_files import base_vocabulary, with_tokens
from dem_hub.merging.tokens import merged_tokens

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

# Keys of `config.json` that are no fields of a recipe. transformers adds its own version where it rewrites the file.
_FOREIGN_KEYS = ("model_type", "transformers_version")


@dataclass(frozen=True)
class DEMConfig:
    """A recipe: base + sum of coefficient * vector, in a file of a few kB.

    Vectors are called by their names: the Hub id or the path of the folder, and `//subfolder` if there is one.

    Args:
        base ([`BaseRecord`]): The base: its id or folder, commit and fingerprint. It may be a recipe itself.
        vectors (`tuple[VectorRecord, ...]`): The vectors with their coefficients, each vector once.
        dtype (`str`, *optional*): Dtype to merge into, such as `"bfloat16"`. Defaults to the base's own.
        rounding (`str`, *optional*, defaults to `"stochastic"`): How a sum becomes bfloat16 or float16:
            `"stochastic"`, which is unbiased, or `"nearest"`, which loses changes of less than half a step.
        rounding_seed (`int`, *optional*, defaults to 0): Seed of the stochastic rounding. The same seed gives the
            same bits.
        architectures (`tuple[str, ...]`, *optional*): Class names of the base's model, as in its `config.json`.
        base_quantized ([`BaseQuantization`], *optional*): The quantization in which adapters were trained on the base.
            It is then quantized and dequantized before the vectors are added.
        search (`Mapping[str, Any]`, *optional*): How the coefficients were found: method, data, losses, number of
            forward passes.
        format_version (`int`, *optional*): Version of the file's format.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the rounding is unknown, its seed is not a whole number of at most 64 bits, or a
            vector is named twice.

    Example:

    ```python
    >>> from dem_hub import DEMConfig
    >>> from dem_hub.hub.references import BaseRecord
    >>> from dem_hub.merging.records import VectorRecord
    >>> vectors = (VectorRecord("me/maths-vector", 0.4), VectorRecord("me/cot-lora", 0.3))
    >>> recipe = DEMConfig(BaseRecord("org/base"), vectors)
    >>> recipe.coefficients
    {'me/maths-vector': 0.4, 'me/cot-lora': 0.3}
    >>> recipe.with_coefficients({"maths-vector": 0.5}).coefficients
    {'me/maths-vector': 0.5, 'me/cot-lora': 0.3}

    ```
    """

    base: BaseRecord
    vectors: tuple[VectorRecord, ...]
    dtype: str | None = None
    rounding: Rounding = "stochastic"
    rounding_seed: int = 0
    architectures: tuple[str, ...] = ()
    base_quantized: BaseQuantization | None = None
    search: Mapping[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.rounding not in ROUNDINGS:
            raise ConfigError(f"rounding is '{self.rounding}'; it must be one of {', '.join(ROUNDINGS)}.")
        object.__setattr__(self, "rounding_seed", plain(self.rounding_seed))
        check_whole(self.rounding_seed, "rounding_seed")
        twice = named_twice(vector.name for vector in self.vectors)
        if twice:
            raise ConfigError(f"Vectors named twice in one recipe: {', '.join(twice)}. Add their coefficients instead.")

    def _repr_html_(self) -> str:
        return recipe_report(self).html()

    @property
    def coefficients(self) -> dict[str, Coefficient]:
        """The coefficient of each vector, by its name: a number, or a number for each group of its tensors.

        All of it is a copy, as a recipe does not change.
        """
        return {vector.name: deepcopy(vector.coefficient) for vector in self.vectors}

    def with_coefficients(self, coefficients: Mapping[str, Coefficient]) -> "DEMConfig":
        """Return the same recipe with other coefficients.

        Args:
            coefficients (`Mapping[str, float]`): New coefficients by the vectors' names, or by the last parts of these
                where they are unique. A vector that is not named keeps its own.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If a name is not that of one vector of this recipe.
            [`~dem_hub.errors.ConfigError`]: If this is not a mapping, or a coefficient is not a finite number.
        """
        if not isinstance(coefficients, Mapping):
            example = next(iter(self.coefficients), "name")
            raise ConfigError(f"coefficients are given by vector, {{{example!r}: 0.5, ...}}, not {coefficients!r}.")
        full = full_names(coefficients, list(self.coefficients), "this recipe")
        wanted = {full[name]: value for name, value in coefficients.items()}
        vectors = tuple(
            replace(vector, coefficient=wanted.get(vector.name, vector.coefficient)) for vector in self.vectors
        )
        return replace(self, vectors=vectors)

    def to_dict(self, folder: Path | None = None) -> dict[str, Any]:
        """Return the recipe as JSON data.

        Args:
            folder (`Path`, *optional*): Folder that the recipe is written to. Folders that it refers to are written
                relative to it, so that all of them can be moved together. Without it they are absolute paths.
        """
        data = {"model_type": "dem", **asdict(self)}
        data["base"] = write_reference(data["base"], folder)
        data["vectors"] = [write_reference(entry, folder) for entry in data["vectors"]]
        if self.base_quantized is None:
            del data["base_quantized"]  # versions of dem_hub that do not have the key read the file
        return data

    def to_json(self, folder: Path | None = None) -> str:
        """Return the text of the recipe's file; see [`DEMConfig.to_dict`].

        Texts in `search` may be those of a stranger whose recipe is passed on, so they go without control characters.
        They go without paths of this machine, too: older recipes name baselines by the folders of their vectors.
        """
        data = self.to_dict(folder)
        return dump_json({**data, "search": without_paths(printable_data(data["search"]))}, foreign=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str, home: "Path | VectorSource | None" = None) -> "DEMConfig":
        """Read a recipe from JSON data.

        Args:
            data (`Mapping[str, Any]`): The data.
            where (`str`): Name of the file, for messages.
            home (`Path` or [`VectorSource`], *optional*): Folder or repository that the data was read from. Only a
                recipe that was read from a folder may refer to folders.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If this is not a recipe, a key is unknown or missing, the format is newer
                than this version of dem_hub, or a recipe from the Hub refers to a folder.
        """
        if data.get("model_type") != "dem":
            raise ConfigError(
                f"{where} has model_type '{data.get('model_type')}', not 'dem': it is a model, not a recipe."
            )
        check_version(data, where)
        values = {key: value for key, value in data.items() if key not in _FOREIGN_KEYS}
        values["base"] = read_record(BaseRecord, read_reference(values.get("base"), where, home), f"{where}: base")
        for name in ("vectors", "architectures"):
            if not fits(list[Any] | None, values.get(name)):
                raise ConfigError(f"{where} has {name} {shown(values[name])}, which is not {kind_text(list[Any])}.")
        vectors = []
        for number, entry in enumerate(values.get("vectors") or ()):
            vectors.append(read_record(VectorRecord, read_reference(entry, where, home), f"{where}: vector {number}"))
        values["vectors"] = tuple(vectors)
        if values.get("base_quantized") is not None:
            quantization = values["base_quantized"]
            values["base_quantized"] = read_record(BaseQuantization, quantization, f"{where}: base_quantized")
        values["architectures"] = tuple(values.get("architectures") or ())
        return read_record(cls, values, where)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, exist_ok: bool = True) -> None:
        """Write the recipe as `config.json`, together with the base's tokenizer, chat template and generation config.

        The folder appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write. It is created if it does not exist.
            exist_ok (`bool`, *optional*, defaults to `True`): Whether a recipe that is already there is replaced.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the folder holds something other than a recipe.
        """
        folder = Path(save_directory)
        check_replaced(folder, RECIPE, exist_ok=exist_ok)
        with atomic_folder(folder, last=RECIPE_CONFIG) as partial:
            self.write(partial, folder)

    def write(self, partial: Path, folder: Path) -> None:
        """Write the recipe and the base's side files into a folder that will take the name `folder`."""
        if self.base.repo_id is not None:
            with self.base_files() as files:
                self._write_side_files(files, partial)
        (partial / RECIPE_CONFIG).write_text(self.to_json(folder), "utf-8")

    @contextmanager
    def base_files(self, options: HubOptions | None = None) -> Iterator[dict[str, Path]]:
        """Yield the side files of the base, by their paths; of a base that is a recipe, those that its export has.

        Args:
            options ([`HubOptions`], *optional*): Token, cache and so on.
        """
        options = options or HubOptions()
        below = self.below(options)
        bottom = below[-1] if below else self
        files = side_files(bottom.base.source, options)
        with ExitStack() as stack:
            for recipe in reversed(below):
                folder = stack.enter_context(scratch_folder())
                recipe._write_side_files(files, folder)
                files = side_files_of(folder, is_published=True)
            yield files

    def below(self, options: HubOptions | None = None) -> list["DEMConfig"]:
        """Return the recipes below this one, from the top down: its base, and the base of that. No vector is opened.

        Args:
            options ([`HubOptions`], *optional*): Token, cache and so on.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If one is based on itself, or too many are on top of each other.
        """
        options = options or HubOptions()
        found: list[DEMConfig] = []
        chain = UNSAVED
        recipe = self
        while is_recipe((resolved := resolve(recipe.base.source, (RECIPE_CONFIG,), options)).folder):
            chain = chain_with(resolved, chain)
            pinned = replace(recipe.base.source, revision=resolved.commit or recipe.base.source.revision)
            recipe = DEMConfig.from_pretrained(pinned, **vars(options))
            found.append(recipe)
        return found

    def _write_side_files(self, files: Mapping[str, Path], folder: Path) -> None:
        """Write the base's side files into a folder, with the tokens that vectors bring."""
        copy_side_files(files, folder)
        for name, text in self.tokenizer_texts(files).items():
            write_text(folder / name, text)

    def tokenizer_texts(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Return the texts of the tokenizer's files that differ from the base's, because vectors bring tokens.

        Args:
            files (`Mapping[str, Path]`): The side files of the base, by their paths.
        """
        vectors = [(record.tokens, record.coefficient) for record in self.vectors]
        if not any(tokens for tokens, _ in vectors):
            return {}
        base = base_vocabulary(files)
        return with_tokens(files, base, merged_tokens(base, vectors))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_vectors: bool = False,
        base_model: str | None = None,
        **options: Unpack[PushOptions],
    ) -> "CommitInfo":
        """Push the recipe to the Hub as one commit, with a card and the base's tokenizer.

        If the coefficients were found by a search, a plot of the perplexities is pushed too.

        Args:
            repo_id (`str`): Repository to push to, `namespace/name`. It is created if it does not exist.
            include_vectors (`bool`, *optional*, defaults to `False`): Push vectors that are folders of this machine
                in the same commit, below `vectors/`. Without it all vectors must be on the Hub already.
            base_model (`str`, *optional*): Hub id of the base. Needed if the recipe's base is a folder of this
                machine.
            options ([`PushOptions`]): `commit_message`, `private`, `token`, `revision`, `create_pr` and others, as in
                [`DistributionVector.push_to_hub`].

        Returns:
            `CommitInfo`: The commit, as `huggingface_hub` describes it.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the recipe refers to folders of this machine. The message lists all of
                them.
            [`~dem_hub.errors.PushConflictError`]: If another commit changed the same files in the meantime.
        """
        return push_recipe(self, repo_id, options, include_vectors=include_vectors, base_model=base_model)

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
        """Read a recipe from a folder or the Hub. No vector and no base is opened.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of a recipe, or of a model that
                was merged from one.
            revision, subfolder, token, cache_dir, local_files_only, force_download: As in transformers.

        Raises:
            [`~dem_hub.errors.NotFoundError`]: If there is no recipe.
            [`~dem_hub.errors.ConfigError`]: If the file is not a valid recipe; see [`DEMConfig.from_dict`].

        Example:

        ```python
        >>> import tempfile
        >>> from dem_hub import DEMConfig, DEMModel
        >>> folder = tempfile.mkdtemp()
        >>> DEMModel.from_pretrained(base_folder, vectors={vector_folder: 0.5}).dem.save_pretrained(folder)
        >>> recipe = DEMConfig.from_pretrained(folder)
        >>> recipe.architectures, list(recipe.coefficients.values())
        (('LlamaForCausalLM',), [0.5])

        ```
        """
        source = VectorSource.parse(name_or_path, revision=revision, subfolder=subfolder)
        options = HubOptions(token, cache_dir, local_files_only, force_download)
        resolved = resolve(source, (RECIPE_CONFIG, PROVENANCE_CONFIG), options)
        home: Path | VectorSource = resolved.folder
        if resolved.commit is not None:
            home = replace(source, revision=resolved.commit)
        # A merged model has both files: its own config, and the recipe.
        for name in (PROVENANCE_CONFIG, RECIPE_CONFIG):
            path = resolved.folder / name
            if path.is_file():
                return cls.from_dict(read_json(path), str(path), home)
        raise NotFoundError(f"'{source}' has no {RECIPE_CONFIG} with a recipe in it.")
