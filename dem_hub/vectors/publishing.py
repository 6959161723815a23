"""What of a vector's folder is fit for the Hub: its files, saying a base that others have, and no path of this machine."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from dem_hub.errors import ConfigError, VectorNotFoundError
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SAFETENSORS, VECTOR_CONFIG, VECTOR_FILES
from dem_hub.files.strict_json import dump_json, parse_json
from dem_hub.hub.client import hub_api
from dem_hub.hub.commits import Head
from dem_hub.hub.failures import hub_errors
from dem_hub.hub.hashes import digest
from dem_hub.hub.references import REPO_ID, BaseRecord
from dem_hub.vectors.config import VectorConfig, codec_name, contents_sha256


@dataclass(frozen=True)
class PublicVector:
    """A vector as it will be on the Hub: its files, its config (`None` for a PEFT adapter), the id of its base, and its identity."""

    files: Mapping[str, Path | str]
    config: VectorConfig | None
    base: str | None
    sha256: str

    @property
    def codec(self) -> str:
        """Its codec, as recipes and stores record it."""
        return codec_name(self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensor files."""
        return sum(
            file.stat().st_size
            for name, file in self.files.items()
            if isinstance(file, Path) and name.endswith(SAFETENSORS)
        )


def public_vector(folder: Path, base_model: str | None = None, *, token: str | bool | None = None) -> PublicVector:
    """Read a vector's folder for the Hub.

    Args:
        folder (`Path`): the vector's.
        base_model (`str`, *optional*): Hub id of its base, where the vector names a folder of this machine.
        token (`str` or `bool`, *optional*): to look the base up with.

    Raises:
        `ConfigError`: its base is a folder of this machine, and `base_model` does not say what others know it as.
        `VectorNotFoundError`: no vector there.
    """
    adapter = folder / ADAPTER_CONFIG
    changed: dict[str, str] = {}
    if (folder / VECTOR_CONFIG).is_file():
        config = VectorConfig.from_json((folder / VECTOR_CONFIG).read_bytes(), str(folder / VECTOR_CONFIG))
        base = public_base(config.base, base_model, f"vector '{folder}'", token=token)
        finetuned = (
            config.finetuned if config.finetuned and REPO_ID.fullmatch(config.finetuned.partition("@")[0]) else None
        )
        files = dict(config.files)
        if adapter.is_file() and base.repo_id is not None:
            changed = _with_base(adapter, base.repo_id)
            files |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in changed.items()}
        config = replace(config, base=base, finetuned=finetuned, files=files)
        changed[VECTOR_CONFIG] = config.to_json()
        return PublicVector({**{name: folder / name for name in files}, **changed}, config, base.repo_id, config.sha256)
    if not adapter.is_file():
        raise VectorNotFoundError(
            f"'{folder}' has neither {VECTOR_CONFIG} nor {ADAPTER_CONFIG}: it is no vector. Check the path."
        )
    named = parse_json(adapter.read_bytes(), str(adapter)).get("base_model_name_or_path") or None
    base_id = (
        public_base(BaseRecord(named), base_model, f"adapter '{folder}'", token=token).repo_id
        if named or base_model
        else None
    )
    changed = _with_base(adapter, base_id) if base_id != named and base_id is not None else {}
    digests = {name: digest(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    digests |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in changed.items()}
    return PublicVector(
        {**{name: folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}, **changed},
        None,
        base_id,
        contents_sha256(digests),
    )


def public_base(base: BaseRecord, base_model: str | None, what: str, *, token: str | bool | None = None) -> BaseRecord:
    """The base as others know it, at a commit; its fingerprint stays, by which every load finds out whether it is the same.

    Raises:
        `ConfigError`: see [`public_vector`].
    """
    if (
        base_model is None
        and base.repo_id is not None
        and not Path(base.repo_id).is_dir()
        and REPO_ID.fullmatch(base.repo_id)
    ):
        return base
    if base_model is None:
        raise ConfigError(
            f"The base of the {what} is '{base.repo_id}', a folder of this machine, which nobody else has. Say what the Hub calls it: "
            "--base-model org/base, in Python base_model='org/base'."
        )
    with hub_errors(
        action=f"The base '{base_model}' of the {what} was looked up on the Hub.",
        remedy="Nothing was pushed. Try again.",
    ):
        return BaseRecord(base_model, hub_api().model_info(base_model, token=token).sha, fingerprint=base.fingerprint)


def stale(head: Head, prefix: str, files: Mapping[str, Path | str]) -> frozenset[str]:
    """Files of an older vector in the same place."""
    return frozenset(
        path
        for path in head.files
        if path.startswith(prefix)
        and path not in files
        and any(
            fnmatch(path.removeprefix(prefix), pattern)
            for pattern in VECTOR_FILES
            if "/" not in path.removeprefix(prefix)
        )
    )


def _with_base(adapter: Path, base: str) -> dict[str, str]:
    data = parse_json(adapter.read_bytes(), str(adapter))
    return {adapter.name: dump_json(data | {"base_model_name_or_path": base})}
