"""The tensors of a recipe, merged one after another, for a server that loads them under the names of the base's files.

The server builds the model itself, and divides and quantises each tensor as it arrives. The numbers are those of
`dem-hub merge`, with `--dtype` where the server runs in another dtype than the recipe and the base say.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.opening import open_base
from dem_hub.errors import BaseMismatchError, ConfigError
from dem_hub.files.folders import is_recipe
from dem_hub.files.names import MODEL_FILES, RECIPE_CONFIG
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.merge import Merge
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_recipe
from dem_hub.numerics.passes import expect_work
from dem_hub.numerics.slices import Index, full_index
from dem_hub.numerics.threads import in_order, one_core
from dem_hub.serving.deferred import DeferredTensor


def open_served(model: VectorSource, recipe: str | None, options: HubOptions) -> OpenedRecipe:
    """Open the recipe that a server is to load.

    Args:
        model ([`VectorSource`]): The model that the server was started with, or told to change to: a recipe, or a base.
        recipe (`str`, *optional*): The recipe to load on `model` if that is a base.
        options ([`HubOptions`]): Token, cache and so on.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `model` is not a recipe and none is given.
        [`~dem_hub.errors.BaseMismatchError`]: If the recipe is for another base than `model`.
        [`~dem_hub.errors.DemHubError`]: What [`open_recipe`] raises.
    """
    if is_recipe(resolve(model, (RECIPE_CONFIG,), options).folder):
        return open_recipe(model, options)
    if recipe is None:
        raise ConfigError(
            f"'{model}' is not a recipe, so there is nothing to merge. Name one: --model-loader-extra-config "
            '\'{"recipe": "me/my-dem"}\'; or serve the model without --load-format dem.'
        )
    return open_recipe_on(model, VectorSource.parse(recipe), options)


def open_recipe_on(served: VectorSource, recipe: VectorSource, options: HubOptions | None = None) -> OpenedRecipe:
    """Open a recipe for a server that has the config and the tokenizer of a base.

    Raises:
        [`~dem_hub.errors.BaseMismatchError`]: If the recipe is for another base.
        [`~dem_hub.errors.DemHubError`]: What [`open_recipe`] raises.
    """
    opened = open_recipe(recipe, options)
    base = open_base(resolve(served, MODEL_FILES, options or HubOptions()))
    if base.fingerprint != opened.base.fingerprint:
        raise BaseMismatchError(
            f"The server has the config and the tokenizer of '{base}', and the recipe '{recipe}' is for "
            f"'{opened.base}'. Serve that one, at that revision."
        )
    return opened


def merged_weights(
    opened: OpenedRecipe, *, dtype: torch.dtype, device: torch.device, vocabulary: int, ranks: int = 1
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the merged values of each tensor of the base's checkpoint.

    One rank gets each tensor merged. Of several, each gets tensors that are merged when they are copied, and only as
    far as they are: a rank keeps a part of them.

    Args:
        opened ([`OpenedRecipe`]): The recipe with its base and vectors.
        dtype (`torch.dtype`): What the server computes in.
        device (`torch.device`): Where the sums are computed.
        vocabulary (`int`): The size of the vocabulary for which the server has built the model.
        ranks (`int`, *optional*, defaults to 1): How many processes the model is divided among.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the vectors bring tokens for which the server's model has no rows.
        [`~dem_hub.errors.CheckpointError`]: If the base or the result has NaN or inf, or a file was changed meanwhile.
    """
    merge = opened.merge(opened.recipe)
    if merge.vocabulary is not None and merge.vocabulary != vocabulary:
        raise ConfigError(
            f"The vectors bring new tokens: the merged vocabulary has {merge.vocabulary} rows, and the server's model "
            f"{vocabulary}. Serve the recipe itself, with --config-format dem, so that the server builds it with these."
        )
    make = _tensor if ranks == 1 else _deferred
    compute = partial(make, merge, merged_dtype(opened, dtype), device)
    names = sorted(merge.base)
    if device.type != "cpu":
        yield from zip(names, map(compute, names), strict=True)
    else:
        # It is known how much is merged here: the compiled passes are loaded for the first tensor, or not at all.
        expect_work(merge.changed_elements() // ranks)
        threads = torch.get_num_threads()
        # The server copies a tensor in this thread while the next ones are merged. torch would do that on all cores,
        # and its threads spin after each copy, on the cores that merge: for SmolLM2-135M, 4.6 s of CPU time instead of
        # 2.9 s, on two cores of a busy machine.
        with one_core():
            tensors = in_order(compute, names, threads) if ranks == 1 else map(compute, names)
            yield from zip(names, tensors, strict=True)
    opened.check_unchanged()


def merged_dtype(opened: OpenedRecipe, dtype: torch.dtype) -> torch.dtype | None:
    """Return the dtype to merge into for a server that computes in `dtype`; `None` is each tensor's own.

    A checkpoint may have single tensors in float32, such as the biases of a router. A server that computes in the
    checkpoint's own dtype keeps these as they are.
    """
    config = read_config(opened.base.folder)
    declared = config.get("dtype") or config.get("torch_dtype")
    if opened.recipe.dtype is None and declared == str(dtype).removeprefix("torch."):
        return None
    return dtype


def _tensor(merge: Merge, dtype: torch.dtype | None, device: torch.device, name: str) -> Tensor:
    return merge.tensor(name, full_index(merge.shape(name)), device, dtype)


def _deferred(merge: Merge, dtype: torch.dtype | None, device: torch.device, name: str) -> DeferredTensor:
    def compute(index: Index) -> Tensor:
        return merge.tensor(name, index, device, dtype)

    return DeferredTensor(compute, full_index(merge.shape(name)), merge.dtype(name, dtype), device)
