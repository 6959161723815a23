"""JSON with one or two values in it that are not what they should be: another type, out of range, missing, twice, or much too large."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What is put in the place of a value. A callable makes something that is too long to write down.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "C:/x",
    "a\0b",
    "a\nb",
    "\ud800",
    "\u20ac",
    "org/base",
    "layers 0-999999999",
    "layers 0-99999999999",
    "(a|a)*b",
    "float32",
    "int4",
    "BF16",
    "safetensors",
    "__init__",
    [],
    [1],
    [None],
    ["x", "x"],
    [[]],
    {},
    {"x": 1},
    {"": None},
    {"rest": 1.0},
    {"layers 0-999999999": 1, "layers 7-8": 2},
    {"group": 10**9},
    {"rank": 10**9},
    {"bits": 3},
    {"density": 1e-300},
    lambda: "x" * 100_000,
    lambda: list(range(10_000)),
    lambda: {str(number): number for number in range(10_000)},
    lambda: json.loads("[" * 90 + "]" * 90),
)

Place = tuple[Any, Any]  # an object or a list, and the key of an entry in it


def places(data: Any) -> list[Place]:
    """Return all entries of JSON data, at any depth."""
    found: list[Place] = []
    stack = [data]
    while stack:
        value = stack.pop()
        entries = list(value.items() if isinstance(value, dict) else enumerate(value))
        found += [(value, key) for key, _ in entries]
        stack += [entry for _, entry in entries if isinstance(entry, (dict, list))]
    return found


def confuse(data: Any, rng: random.Random) -> str:
    """Return the text of JSON data, changed at one or two places. `data` itself changes too."""
    repeated = False
    for _ in range(rng.choice((1, 1, 1, 2))):
        candidates = places(data)
        if not candidates:
            break
        owner, key = rng.choice(candidates)
        kind = rng.randrange(10)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[rng.choice(["", "x", "a\0b", "../x", "\ud800", "k" * 5000, key.upper(), f"{key}s"])] = owner.pop(key)
        elif kind == 2:
            owner[key] = [owner[key]]
        elif kind == 3:
            other, name = rng.choice(candidates)
            owner[key] = json.loads(json.dumps(other[name]))
        elif kind == 4 and isinstance(owner, dict):
            repeated = True
        else:
            value = rng.choice(VALUES)
            owner[key] = json.loads(json.dumps(value() if callable(value) else value))
    text = json.dumps(data)
    if repeated:  # the first key of the file occurs twice
        text = text.replace("{", "{" + text[1:].partition(",")[0].partition(":")[0] + ": 1, ", 1)
    return text


def confuse_often(
    path: Path,
    rounds: int,
    use: Callable[[], object],
    allowed: tuple[type[BaseException], ...],
    sign: Callable[[Any], Any] | None = None,
    seed: str = "",
) -> int:
    """Confuse a JSON file many times, and use what is left of it.

    Args:
        path (`Path`): The file. It is as before in the end.
        rounds (`int`): How many times.
        use (`Callable`): What reads the file.
        allowed (`tuple`): Errors that it may raise.
        sign (`Callable`, *optional*): Makes the data's own checksum right again.
        seed (`str`): Other seeds are other changes.

    Returns:
        `int`: How many files were refused.

    Raises:
        `AssertionError`: If it raised another error. The message has the number of the round and what was in the file.
    """
    good = path.read_bytes()
    rng = random.Random(f"{path.name} {seed}")
    refused = 0
    for number in range(rounds):
        data = json.loads(good)
        text = confuse(data, rng)
        if sign is not None:
            text = json.dumps(sign(data))
        path.write_text(text)
        try:
            use()
        except allowed:
            refused += 1
        except Exception as error:
            raise AssertionError(f"round {number}: {error!r} by {text[:600]}") from error
    path.write_bytes(good)
    return refused
