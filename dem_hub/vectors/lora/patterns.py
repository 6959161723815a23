"""Patterns of an adapter's config (`alpha_pattern`, `target_modules`), matched as PEFT matches them, in linear time.

PEFT runs a pattern with Python's `re`, which takes exponential time for some patterns, and the file may come from
anybody. RE2 takes linear time and bounded memory for every pattern. (The package `regex` has a time limit for
matching, but none for compiling: `a{1000000000}` takes all memory.) RE2 and `re` agree on what both of them know and
[`Patterns`] allows, so the value that is found is PEFT's. Anything else is refused, and never matched in another way.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from dem_hub.errors import AdapterError

# Characters of a pattern. The longest name of a module in a test of transformers has 120; chosen by hand.
_LONGEST = 1000
# Bytes of RE2 for one pattern: its default is 8 MB. A pattern of 1,000 characters takes a tenth of this.
_MEMORY = 1 << 20
# A pattern that is only a name: its dots match any character. These are nearly all patterns.
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
# What `re` and RE2 understand differently: `x{,3}`, and `[:` in a set, which is the class of POSIX in RE2 alone.
_AMBIGUOUS = ("{,", "[:", "[.", "[=")


class Patterns:
    """Values by pattern, such as the alpha of some modules. All patterns are compiled and checked at once.

    Args:
        patterns (`Mapping[str, float]`): The value of each pattern, in the order of the file.
        setting (`str`): The setting that they come from, for messages.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If a pattern is not one that `re` and RE2 understand in the same way.

    Example:

    ```python
    >>> from dem_hub.vectors.lora.patterns import Patterns
    >>> patterns = Patterns({"q_proj": 8, r"layers\\.[0-3]\\..*": 16}, "alpha_pattern")
    >>> patterns.first("model.layers.2.self_attn.q_proj", 4), patterns.first("model.layers.2.mlp.up_proj", 4)
    (8, 16)
    >>> patterns.first("lm_head", 4)
    4

    ```
    """

    def __init__(self, patterns: Mapping[str, float], setting: str) -> None:
        self._setting = setting
        self._compiled = [(_compile(pattern, setting), value) for pattern, value in patterns.items()]

    def first(self, name: str, default: float) -> float:
        """Return the value of the first pattern that matches a name or its end, as PEFT's `get_pattern_key` does.

        Args:
            name (`str`): Name of a module or a parameter.
            default (`float`): What to return if no pattern matches.

        Raises:
            [`~dem_hub.errors.AdapterError`]: If there are patterns, and the name has characters by which RE2 and `re`
                differ.
        """
        if self._compiled:
            _check_name(name, self._setting)
        for matches, value in self._compiled:
            if matches(name):
                return value
        return default


def full_match(pattern: str, setting: str) -> Callable[[str], bool]:
    """Return a function that tells whether all of a name matches a pattern, as PEFT matches `target_modules`.

    Args:
        pattern (`str`): The pattern.
        setting (`str`): The setting that it comes from, for messages.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If the pattern, or later a name, is not one that `re` and RE2 understand in
            the same way.
    """
    compiled = _compiled(pattern, f"(?:{pattern})", setting)

    def matches(name: str) -> bool:
        _check_name(name, setting)
        return compiled.fullmatch(name) is not None

    return matches


def _check_name(name: str, setting: str) -> None:
    """Refuse a name with characters by which RE2 and `re` differ."""
    # RE2 reads `a{9999999999}` as letters, which a name with braces could match.
    if not name.isascii() or not name.isprintable() or "{" in name:
        raise AdapterError(
            f"{setting} cannot be matched with the module {name!r}, whose name is not plain ASCII. Merge the adapter "
            "with PEFT, and extract the vector of the result."
        )


def _compile(pattern: str, setting: str) -> Any:
    """Return a function that tells whether a name, or its end after a dot, matches a pattern."""
    if len(pattern) <= _LONGEST and _PLAIN.fullmatch(pattern):
        return _plain(pattern)
    return _compiled(pattern, _as_peft(pattern), setting).match


def _compiled(pattern: str, expression: str, setting: str) -> Any:
    """Return RE2's object for an expression that PEFT makes of a pattern."""
    if len(pattern) > _LONGEST:
        raise _refusal(f"{pattern[:60]}...", setting, f"it has {len(pattern)} characters, and {_LONGEST} are allowed")
    fault = _fault(pattern, expression)
    if fault:
        raise _refusal(pattern, setting, fault)
    import re2

    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False  # RE2 would write them to stderr
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else error
        raise _refusal(pattern, setting, f"it cannot be matched in linear time ({reason})") from error


def _plain(pattern: str) -> Any:
    """Return the function for a pattern that is only a name, without RE2: it is much quicker for thousands of names."""
    end = pattern.rpartition(".")[2]
    compiled = re.compile(_as_peft(pattern))

    def matches(name: str) -> bool:
        return name.endswith(end) and compiled.match(name) is not None

    return matches


def _fault(pattern: str, expression: str) -> str:
    """Return why a pattern is not one that `re` and RE2 understand in the same way; an empty text if it may be."""
    if not pattern.isascii() or not pattern.isprintable():
        return "it has characters other than printable ASCII"
    for text in _AMBIGUOUS:
        if text in pattern:
            return f"it has '{text}', which is not clear"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(expression)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        return f"it is not a regular expression of Python ({error})"
    return ""


def _as_peft(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _refusal(pattern: str, setting: str, reason: str) -> AdapterError:
    return AdapterError(
        f"{setting} has the pattern {pattern!r}, and {reason}. If you trust the adapter, merge it with PEFT, and "
        "extract the vector of the result."
    )
