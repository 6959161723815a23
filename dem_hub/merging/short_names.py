"""Short names of vectors: the last part of an id or path, with as many parts before it as tell the vectors apart.

They are what tables show, and what is accepted wherever one of several known vectors is named.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from dem_hub.errors import CoefficientError
from dem_hub.files.distinct_names import distinct_names
from dem_hub.merging.records import canonical_name


def short_names(names: Sequence[str]) -> list[str]:
    """Return the short name of each vector.

    Example:

    ```python
    >>> from dem_hub.merging.short_names import short_names
    >>> short_names(["me/maths", "/runs/1/code", "/runs/2/code", "me/vectors//chat"])
    ['maths', '1/code', '2/code', 'chat']

    ```
    """
    return ["/".join(parts) for parts in distinct_names([Path(name) for name in names])]


def full_names(given: Iterable[str], names: Sequence[str], owner: str) -> dict[str, str]:
    """Return which vector each name is of, by what was given.

    A name may be the vector's own, another path of its folder, or its last part or parts, if those of no other vector
    are the same. What is a folder of this machine is that folder and nothing shorter.

    Args:
        given (`Iterable[str]`): What the caller calls the vectors.
        names (`Sequence[str]`): The names of all vectors.
        owner (`str`): What has these vectors, for messages.

    Raises:
        [`~dem_hub.errors.CoefficientError`]: If a name is of no vector or of several, or two are of one; all are listed.

    Example:

    ```python
    >>> from dem_hub.merging.short_names import full_names
    >>> full_names(["maths", "me/chat"], ["me/maths", "me/chat"], "this recipe")
    {'maths': 'me/maths', 'me/chat': 'me/chat'}
    >>> full_names(["maths"], ["me/maths", "you/maths"], "this recipe")
    Traceback (most recent call last):
    dem_hub.errors.CoefficientError: 'maths' is the end of 'me/maths', 'you/maths'. Name more of it.

    ```
    """
    by_place = {canonical_name(name): name for name in names}
    found: dict[str, str] = {}
    unknown = []
    faults = []
    for name in given:
        place = canonical_name(name)
        alike = [by_place[place]] if place in by_place else []
        if not alike and place == name:
            alike = [known for known in names if _ends_with(known, name)]
        if not alike:
            unknown.append(place)
        elif len(alike) > 1:
            faults.append(f"'{name}' is the end of {', '.join(map(repr, alike))}. Name more of it.")
        elif alike[0] in found.values():
            faults.append(f"'{name}' is '{alike[0]}', which is named twice.")
        else:
            found[name] = alike[0]
    if unknown:
        faults.append(
            f"No vector of {owner} is called {', '.join(map(repr, sorted(unknown)))}; it has "
            f"{', '.join(map(repr, by_place))}."
        )
    if faults:
        raise CoefficientError(" ".join(faults))
    return found


def _ends_with(name: str, end: str) -> bool:
    parts = PurePath(end).parts
    return bool(parts) and PurePath(name).parts[-len(parts) :] == parts
