"""What is typed on a command line, read: pairs and numbers."""

from dem_hub.errors import ConfigError


def split_pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE` as a pair; the name may have `=` in it.

    Raises:
        `ConfigError`: one of them is missing.
    """
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise ConfigError(f"'{text}' is not NAME=VALUE.")
    return name, value


def number(text: str, what: str) -> float:
    """A number.

    Raises:
        `ConfigError`: it is none; says what it was to be.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"The {what} is '{text}', which is not a number.") from error
