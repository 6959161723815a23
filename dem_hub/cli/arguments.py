"""What is typed on a command line, read: pairs and numbers."""

from collections.abc import Iterable

from dem_hub.errors import ConfigError


def split_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """The values of an option that is repeated as `NAME=VALUE`, by name; a name may have `=` in it.

    Raises:
        `ConfigError`: a name or a value is missing; or a name comes twice, of which one would be lost.

    Example:

    ```python
    >>> from dem_hub.cli.arguments import split_pairs
    >>> split_pairs(["maths=a.jsonl", "chat=b.jsonl"], "--data")
    {'maths': 'a.jsonl', 'chat': 'b.jsonl'}
    >>> split_pairs(["maths=a.jsonl", "maths=b.jsonl"], "--data")
    Traceback (most recent call last):
    dem_hub.errors.ConfigError: --data has 'maths' named twice: a.jsonl and b.jsonl. Name each once.

    ```
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value:
            raise ConfigError(f"{option} '{text}' is not NAME=VALUE.")
        if name in found:
            raise ConfigError(f"{option} has '{name}' named twice: {found[name]} and {value}. Name each once.")
        found[name] = value
    return found


def number(text: str, what: str) -> float:
    """A number.

    Raises:
        `ConfigError`: it is none; says what it was to be.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"The {what} is '{text}', which is not a number.") from error
