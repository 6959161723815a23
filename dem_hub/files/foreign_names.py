"""Names of files, folders and repositories in files that may come from anybody, checked before they are used."""

from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown

# Characters of a name: what Linux allows for a path.
_LONGEST_NAME = 4096


def check_inside(name: str, description: str) -> None:
    """Refuse a file name that leaves the folder it belongs to.

    Args:
        name (`str`): The name, from a file that may come from anybody.
        description (`str`): What the name is, for the message: "file of 'org/base'".

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the name is absolute, has `..`, a backslash, a drive letter or a control
            character in it, or is longer than any path.
    """
    if not isinstance(name, str):
        raise ConfigError(f"The {description} is {shown(name)}, which is not a name.")
    check_name(name, description)
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        raise ConfigError(
            f"The {description} is '{name}'; names must be relative and may not contain '..'. Do not use this "
            "repository."
        )


def check_name(name: str, description: str) -> None:
    """Refuse a name that no file, folder or repository can have.

    Args:
        name (`str`): The name, from a file that may come from anybody.
        description (`str`): What the name is, for the message.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it has a control character, which the system or a terminal would read in
            its own way, or is longer than any path.
    """
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"The {description} is {shown(name)}: it has {len(name)} characters, and {_LONGEST_NAME} are allowed."
        )
    if any(character < " " or character == "\x7f" for character in name):
        raise ConfigError(f"The {description} is {shown(name)}; names may not contain control characters.")
