"""Push a vector, from a public copy of its folder: the base is named by its Hub id, and no local path is left in
any file.

Only the two JSON files differ from those on disk. The weights are pushed as they are, and the base's fingerprint
stays in the config, so every load still checks that the base is the same.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.errors import ConfigError, VectorNotFoundError
from dem_hub.files.folders import is_recipe
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.links import check_links
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    NORMS_PLOT,
    SAFETENSORS,
    SIDECARS,
    TRAINING_FACTS,
    VECTOR_CONFIG,
    VECTOR_FILES,
)
from dem_hub.files.strict_json import dump_json, read_json
from dem_hub.hub.cards import render
from dem_hub.hub.client import hub_api
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.failures import hub_errors
from dem_hub.hub.foreign_text import printable_data
from dem_hub.hub.hashes import digest, verify_files
from dem_hub.hub.listing import licenses
from dem_hub.hub.preview import announce
from dem_hub.hub.references import REPO_ID, BaseRecord
from dem_hub.hub.remote import in_time
from dem_hub.vectors.cards import vector_card
from dem_hub.vectors.config import VectorConfig, codec_name, contents_sha256
from dem_hub.vectors.folder import stale_files
from dem_hub.vectors.sidecars import read_training, sidecars_of
from dem_hub.vectors.statistics_beside import public_statistics
from dem_hub.vectors.tokens import tokenizer_beside

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


# The fields of a vector's config that only tell a reader something.
_TOLD = ("choice", "codec_options", "training", "libraries", "transformation")

# A repository of the Hub, maybe at a revision and with a subfolder, as `finetuned` of a vector names it.
_NAME = re.compile(rf"{REPO_ID.pattern}(@[\w][\w./-]*)?(//[\w][\w./-]*)?")


@dataclass(frozen=True)
class PublicVector:
    """A vector as it will be on the Hub.

    `files` has the path or the text of each file, by its name; `config` is `None` for a PEFT adapter; `base` is the
    Hub id of the base; `sha256` is the vector's identity on the Hub, 64 hex digits.
    """

    files: Mapping[str, Path | str]
    config: VectorConfig | None
    base: str | None
    sha256: str

    @property
    def codec(self) -> str:
        """Name of its codec, as recipes and stores record it."""
        return codec_name(self.config)

    @property
    def nbytes(self) -> int:
        """Size of its tensor files, in bytes."""
        total = 0
        for name, file in self.files.items():
            if isinstance(file, Path) and name.endswith(SAFETENSORS):
                total += file.stat().st_size
        return total


def push_vector(
    folder: Path,
    repo_id: str,
    options: PushOptions,
    *,
    subfolder: str = "",
    base_model: str | None = None,
    include_statistics: bool = False,
) -> "CommitInfo":
    """Push a vector's folder in one commit, with a model card. A vector in the same place is replaced.

    Args:
        folder (`Path`): Folder of a vector or of a PEFT adapter.
        repo_id (`str`): The repository. It is created if it does not exist.
        options ([`PushOptions`]): Options of the push.
        subfolder (`str`, *optional*): Subfolder of the repository to push into.
        base_model (`str`, *optional*): Hub id of the base, if the vector names a local folder.
        include_statistics (`bool`, *optional*): Push its input statistics too.

    Raises:
        `ConfigError`: If there are no input statistics that could be pushed, or as [`public_vector`] raises it.
        `VectorNotFoundError`: As [`public_vector`] raises it.
        `PushConflictError`: If the same files were changed on the Hub in the meantime.
    """
    token = options.get("token")
    check_links(folder, SIDECARS)
    vector = public_vector(folder, base_model, token=token)
    source_licenses = licenses([vector.base] if vector.base else [], token=token)
    check_inside(subfolder, f"subfolder of '{repo_id}'")
    prefix = f"{subfolder}/" if subfolder else ""
    sidecars: dict[str, Path | str] = {**sidecars_of(folder)}
    if TRAINING_FACTS in sidecars:
        sidecars[TRAINING_FACTS] = dump_json(printable_data(read_json(folder / TRAINING_FACTS)), foreign=True)
    if include_statistics:
        sidecars |= wanted_statistics([folder])[folder]
    announce(repo_id, {prefix + name: file for name, file in {**vector.files, **sidecars}.items()})
    picture = NORMS_PLOT if NORMS_PLOT in sidecars else ""
    training = read_training(folder)

    def compose(head: Head) -> Change:
        card = vector_card(head.repo_id, subfolder, vector.config, vector.base, source_licenses, training, picture)
        files = {prefix + name: file for name, file in {**vector.files, **sidecars}.items()}
        old_sidecars = {prefix + name for name in SIDECARS if prefix + name in head.files}
        removed = stale_files(head, prefix, files) | (old_sidecars - set(files))
        readme = prefix + CARD
        return Change({**files, readme: render(card, head.read(readme))}, removed, frozenset({readme}))

    return push(repo_id, compose, options, f"Push the vector {subfolder or repo_id}")


def wanted_statistics(folders: Iterable[Path]) -> dict[Path, dict[str, Path | str]]:
    """Return the input statistics of vectors as they are pushed: the files by name, by folder.

    Raises:
        `ConfigError`: If no vector has any, or some are not those of their vector.
        `CheckpointError`: If some are damaged.
    """
    found = {folder: public_statistics(folder) for folder in folders}
    if not any(found.values()):
        names = ", ".join(f"'{folder}'" for folder in found)
        raise ConfigError(
            f"No input statistics are in {names}, and they were to be pushed. Gather them first: dem-hub statistics."
        )
    return found


def public_vector(folder: Path, base_model: str | None = None, *, token: str | bool | None = None) -> PublicVector:
    """Prepare a vector's folder for the Hub. Nothing is written.

    Args:
        folder (`Path`): Folder of a vector or of a PEFT adapter.
        base_model (`str`, *optional*): Hub id of the base, if the vector names a local folder.
        token (`str` or `bool`, *optional*): Token to look the base up with.

    Returns:
        [`PublicVector`]: What to push.

    Raises:
        `ConfigError`: If the base is a local folder and `base_model` is not given, or a file of the vector is a
            link that leads out of its folder.
        `CheckpointError`: If files are missing, or are not those that the config names.
        `VectorNotFoundError`: If the folder has no vector.
    """
    check_links(folder, VECTOR_FILES)
    if (folder / VECTOR_CONFIG).is_file():
        return _public_extracted(folder, base_model, token=token)
    if (folder / ADAPTER_CONFIG).is_file():
        return _public_adapter(folder, base_model, token=token)
    raise VectorNotFoundError(
        f"'{folder}' has neither {VECTOR_CONFIG} nor {ADAPTER_CONFIG}: it is no vector. Check the path."
    )


def public_base(base: BaseRecord, base_model: str | None, what: str, *, token: str | bool | None = None) -> BaseRecord:
    """Return the base as others can find it: a Hub id at a commit. Its fingerprint stays.

    Args:
        base ([`BaseRecord`]): The base as it is recorded.
        base_model (`str`, *optional*): Hub id to name instead. It is looked up on the Hub.
        what (`str`): What has this base, for error messages.
        token (`str` or `bool`, *optional*): Token to look the base up with.

    Raises:
        `ConfigError`: If the base is a local folder and `base_model` is not given.
    """
    if base_model is None:
        if base.repo_id is None or not base.source.is_repository:
            push_first = ""
            if base.repo_id is not None and is_recipe(Path(base.repo_id, base.subfolder)):
                push_first = f" It is a recipe, so push it first: dem-hub push {base.repo_id} me/first-round."
            raise ConfigError(
                f"The base of the {what} is '{base.repo_id}', a folder of this machine, which nobody else has. "
                "Say what the Hub calls it: "
                f"--base-model org/base, in Python base_model='org/base'.{push_first}"
            )
        return base
    with hub_errors(
        action=f"The base '{base_model}' of the {what} was looked up on the Hub.",
        remedy="Nothing was pushed. Try again.",
    ):
        commit = in_time(partial(hub_api().model_info, base_model, token=token)).sha
        return BaseRecord(base_model, commit, fingerprint=base.fingerprint)


def _public_extracted(folder: Path, base_model: str | None, *, token: str | bool | None) -> PublicVector:
    """Prepare a vector that has a config of its own."""
    path = folder / VECTOR_CONFIG
    config = VectorConfig.read(path)
    verify_files(folder, config.files)
    base = public_base(config.base, base_model, f"vector '{folder}'", token=token)
    finetuned = config.finetuned
    if finetuned and not _NAME.fullmatch(finetuned):
        finetuned = None  # a local path, or a text that names nothing
    changed: dict[str, str] = {}
    hashes = dict(config.files)
    adapter = folder / ADAPTER_CONFIG
    if ADAPTER_CONFIG in hashes and base.repo_id is not None:
        changed[ADAPTER_CONFIG] = _with_base(adapter, base.repo_id)
        hashes[ADAPTER_CONFIG] = _text_sha256(changed[ADAPTER_CONFIG])
    # What only tells a reader something may come from a stranger, whose vector is pushed on.
    told = {name: printable_data(getattr(config, name)) for name in _TOLD}
    config = replace(config, base=base, finetuned=finetuned or None, files=hashes, **told)
    changed[VECTOR_CONFIG] = config.to_json()
    on_disk = {name: folder / name for name in hashes}
    return PublicVector({**on_disk, **changed}, config, base.repo_id, config.sha256)


def _public_adapter(folder: Path, base_model: str | None, *, token: str | bool | None) -> PublicVector:
    """Prepare an adapter that PEFT wrote. An adapter may name no base at all."""
    adapter = folder / ADAPTER_CONFIG
    recorded = read_json(adapter).get("base_model_name_or_path") or None
    base_id = None
    if recorded or base_model:
        base_id = public_base(BaseRecord(recorded), base_model, f"adapter '{folder}'", token=token).repo_id
    on_disk = {name: folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    hashes = {name: digest(path) for name, path in on_disk.items()}
    on_disk |= tokenizer_beside(folder)
    changed: dict[str, str] = {}
    if base_id is not None and base_id != recorded:
        changed[ADAPTER_CONFIG] = _with_base(adapter, base_id)
        hashes[ADAPTER_CONFIG] = _text_sha256(changed[ADAPTER_CONFIG])
    return PublicVector({**on_disk, **changed}, None, base_id, contents_sha256(hashes))


def _with_base(adapter: Path, base: str) -> str:
    """Return the text of an `adapter_config.json` with another base."""
    return dump_json(read_json(adapter) | {"base_model_name_or_path": base})


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
