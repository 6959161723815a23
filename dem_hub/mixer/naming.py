"""Names on a page that strangers may see: ids and names that a visitor types, and messages.

A page never shows where something is on this machine, nor a token. What a visitor types is an id of the Hub or a plain
name, and never a path.
"""

import re

from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable, without_paths
from dem_hub.hub.references import REPO_ID, HubId, VectorSource

# Tokens of the Hub, and of organisations on it.
_TOKEN = re.compile(r"\b(hf|api_org)_\w+")

_PLAIN_NAME = re.compile(r"\w[\w.-]*")

_LONGEST_NAME = 80  # characters: well below what a file system takes


def public_text(text: object) -> str:
    """Return a message without the places of files on this machine, and without tokens.

    Example:

    ```python
    >>> from dem_hub.mixer.naming import public_text
    >>> public_text("'/home/ann/my models/maths' is no vector; see https://huggingface.co/me/maths (hf_abcdef)")
    "'maths' is no vector; see https://huggingface.co/me/maths (hf_...)"

    ```
    """
    shown: str = without_paths(_TOKEN.sub(r"\1_...", printable(text, keep="\n")))
    return shown


def parse_hub_id(text: str) -> VectorSource:
    """Return what a visitor calls a repository of the Hub: `NAMESPACE/NAME[@REVISION][//SUBFOLDER]`.

    Raises:
        `ConfigError`: This is no such id, but for instance a path.
    """
    name, _, subfolder = text.strip().partition("//")
    repo_id, _, revision = name.partition("@")
    if "/" not in repo_id or not REPO_ID.fullmatch(repo_id):
        raise ConfigError(f"'{public_text(text)}' is no id of the Hub. Write NAMESPACE/NAME, for instance me/maths.")
    # A folder of this machine with the same name is not what a visitor means.
    return VectorSource(HubId(repo_id), revision or None, subfolder)


def check_recipe_name(text: str) -> str:
    """Return the name under which a visitor saves a recipe.

    Raises:
        `ConfigError`: It is empty, long, or has anything but letters, digits and `._-` in it.
    """
    name = text.strip()
    if not _PLAIN_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"'{public_text(text)}' is no name for a recipe. Use letters, digits, '-', '_' and '.', at most "
            f"{_LONGEST_NAME} of them."
        )
    return name
