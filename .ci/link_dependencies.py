"""Link what a distribution depends on into the environment that has it, from the environment that runs this.

    .venv/bin/python .ci/link_dependencies.py FRESH/bin/python dem-hub

The fresh environment then has what pip would install there: the distributions that the installed one names, those that
they name, and no others, at the versions that the tests ran with. `pip check` in it compares the versions, and an import
of something that is not named fails. Nothing is downloaded, unpacked and compiled a second time.
"""

import subprocess
import sys
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(distribution_: Distribution, extras: frozenset[str]) -> list[Requirement]:
    """Return the requirements of a distribution that hold here."""
    found = []
    for line in distribution_.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.append(requirement)
    return found


def dependencies(top: Distribution) -> dict[str, Distribution]:
    """Return all that a distribution depends on, by name. What is not installed here raises `PackageNotFoundError`."""
    found: dict[str, Distribution] = {}
    seen = set()
    waiting = needed(top, frozenset())
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) not in seen:
            seen.add((name, extras))
            found[name] = distribution(name)
            waiting += needed(found[name], extras)
    return found


def link(source: Distribution, site: Path) -> None:
    """Link each file of a distribution. Commands are left out. What Python compiles is kept here, for the tests."""
    for file in source.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        path, place = Path(str(source.locate_file(file))), site / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
        compiled, linked = path.parent / "__pycache__", place.parent / "__pycache__"
        if path.suffix == ".py" and not linked.is_symlink():
            compiled.mkdir(exist_ok=True)
            linked.symlink_to(compiled)


def main(interpreter: str, name: str) -> None:
    """Link the dependencies of a distribution of another interpreter."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    (top,) = (found for found in distributions(path=[str(site)]) if canonicalize_name(found.name) == name)
    for one in dependencies(top).values():
        link(one, site)


if __name__ == "__main__":
    main(*sys.argv[1:])
