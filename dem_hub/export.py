"""A DEM written out as an ordinary transformers folder, which anything that reads one can use with no dem_hub installed.

Base and vectors stream tensor by tensor into sharded safetensors, with the memory of a block of rows; no model is built and
transformers is not imported. The recipe lies beside the weights as `dem_config.json`.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from dem_hub.architecture import read_config
from dem_hub.card import recipe_card, render
from dem_hub.catalog import licences
from dem_hub.checkpoint import CODES
from dem_hub.config import PROVENANCE_CONFIG, RECIPE_CONFIG, DEMConfig
from dem_hub.errors import ConfigError, VectorNotFoundError
from dem_hub.files import atomic_folder, write_text
from dem_hub.hub import copy_side_files
from dem_hub.index import full_index
from dem_hub.merging import Merge
from dem_hub.parallel import in_order
from dem_hub.preview import Preview, preview
from dem_hub.push import CARD, Change, Head, PushOptions, push
from dem_hub.recipe import OpenedRecipe
from dem_hub.shards import Outline, write_outlined

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export(
    opened: OpenedRecipe,
    target: Path,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    allow_base_mismatch: bool = False,
    announce: Callable[[Preview], object] | None = None,
) -> None:
    """Write the merged model into a folder, which appears complete or not at all.

    Args:
        opened ([`OpenedRecipe`]): the recipe with its base and vectors.
        target (`Path`): the folder.
        dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`; the recipe's by default, else each tensor's own.
        max_shard_size (`int` or `str`): where to begin another file.
        allow_base_mismatch (`bool`): see [`DEMModel.from_pretrained`].
        announce (*optional*): called with what it will take, once all is checked and before anything is written.

    Raises:
        `ConfigError`: an unknown dtype, or the base's own folder as the target.
        `DiskSpaceError`: less is free there than it takes.
        `CheckpointError`: NaN or inf in the base or after the merge.
    """
    from huggingface_hub.utils import tqdm

    merge, wanted, chosen = _prepare(opened, target, dtype, allow_base_mismatch=allow_base_mismatch)
    seen = preview(merge, target, wanted)
    if announce is not None:
        announce(seen)
    cpu = torch.device("cpu")
    outlines = [Outline(name, CODES[merge.dtype(name, wanted)], merge.shape(name)) for name in sorted(merge.base)]
    jobs = [(tensor.name, part) for tensor in outlines for part in merge.parts(tensor.name, full_index(tensor.shape), cpu)]
    merged = in_order(lambda job: merge.tensor(*job, cpu, wanted), jobs)
    blocks = iter(tqdm(merged, total=len(jobs), desc="Merging", unit="block", delay=1))
    with atomic_folder(target) as folder:
        names = {path.name for path in write_outlined(folder, outlines, blocks, max_shard_size=max_shard_size)}
        config = _model_config(opened.base.folder, chosen, merge)
        if config:
            write_text(folder / RECIPE_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        copy_side_files(opened.base.folder, folder)
        for code in opened.base.folder.glob("*.py"):  # a base with code of its own; it runs only if the user trusts it
            shutil.copyfile(code, folder / code.name)
        provenance = replace(opened.recipe, dtype=chosen).to_dict(target)
        write_text(folder / PROVENANCE_CONFIG, json.dumps(provenance, indent=2, sort_keys=True) + "\n")
        for path in [*target.glob("model*.safetensors"), *target.glob("model*.safetensors.index.json")]:
            if path.name not in names:
                path.unlink()  # of an older export, in other shards


def preview_export(opened: OpenedRecipe, target: Path, *, dtype: str | None = None, allow_base_mismatch: bool = False) -> Preview:
    """What [`export`] will do, and nothing done yet; takes and raises what that does, and `DiskSpaceError`."""
    merge, wanted, _ = _prepare(opened, target, dtype, allow_base_mismatch=allow_base_mismatch)
    return preview(merge, target, wanted)


def _prepare(
    opened: OpenedRecipe, target: Path, dtype: str | None, *, allow_base_mismatch: bool
) -> tuple[Merge, torch.dtype | None, str | None]:
    """The merge, and the dtype that is wanted of it, once all that can be refused has been."""
    chosen = dtype or opened.recipe.dtype
    if chosen is not None and chosen not in _DTYPES:
        raise ConfigError(f"dtype is '{chosen}'; choose one of {', '.join(_DTYPES)}.")
    if target.resolve() == opened.base.folder.resolve():
        raise ConfigError(f"'{target}' is the base itself, which the merged model would replace. Choose another folder.")
    merge = opened.merge(opened.recipe, allow_base_mismatch=allow_base_mismatch)
    return merge, _DTYPES[chosen] if chosen is not None else None, chosen


def _model_config(base: Path, dtype: str | None, merge: Merge) -> dict[str, Any]:
    """The base's `config.json`, with the merged dtype and the size of a grown vocabulary."""
    config = read_config(base)
    if not config:
        return {}
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    if merge.vocabulary is not None:
        owner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
        owner["vocab_size"] = merge.vocabulary
    return config


def push_export(folder: Path, repo_id: str, **options: Unpack[PushOptions]) -> "CommitInfo":
    """Push a merged model's folder, with a card, as one commit; the weights of an older one are replaced.

    Args:
        folder (`Path`): what [`export`] wrote.
        repo_id (`str`): the repository; made where there is none.
        options ([`PushOptions`]): as in [`DistributionVector.push_to_hub`].

    Raises:
        `VectorNotFoundError`: no merged model there. `PushConflictError`: somebody else changed the same files meanwhile.
    """
    if not (folder / PROVENANCE_CONFIG).is_file():
        raise VectorNotFoundError(f"'{folder}' has no {PROVENANCE_CONFIG}: it is no model that dem_hub merged. Check the path.")
    recipe = DEMConfig.from_pretrained(folder)
    sources = [recipe.base.source, *(vector.source for vector in recipe.vectors)]
    public = {str(replace(source, revision=None)): source for source in sources if not source.is_local}
    own: dict[str, Path | str] = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CARD}
    if len(public) < len(sources):
        names = ", ".join(f"'{source}'" for source in sources if source.is_local)
        warnings.warn(f"{PROVENANCE_CONFIG} names folders of this machine ({names}), and is not pushed with the model.", stacklevel=2)
        del own[PROVENANCE_CONFIG]
    stated = licences(dict.fromkeys(source.repo_id for source in public.values()), token=options.get("token"))
    called = [name if name in public else Path(name).name for name in (str(replace(s, revision=None)) for s in sources)]
    shown = dict(zip(called[1:], recipe.coefficients.values(), strict=True))

    def compose(head: Head) -> Change:
        card = recipe_card(head.repo_id, called[0], shown, recipe.search, stated, merged=True)
        old = {path for path in head.files if fnmatch(path, "model*.safetensors*") and path not in own}
        return Change({**own, CARD: render(card, head.read(CARD))}, frozenset(old))

    return push(repo_id, compose, options, "Push the merged model")
