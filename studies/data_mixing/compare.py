"""Whether two runs of the study say the same: every number of `report.json` but the seconds, to a tolerance.

    python -m studies.data_mixing one --smoke
    python -m studies.data_mixing two --smoke
    python -m studies.data_mixing.compare one/report/report.json two/report/report.json

Two runs on one machine were the same to 1e-9; the default tolerance leaves room for threads that sum in another order. Exits with 1 where
anything differs by more.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = "seconds"


def differences(first: Any, second: Any, tolerance: float, place: str = "") -> Iterator[str]:
    """A line for each value that is not the same: of another kind, another text, or further apart than `tolerance`."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted(first.keys() | second.keys()):
            if name == SECONDS:
                continue
            if name not in first or name not in second:
                yield f"{place}/{name}: only in the {'first' if name in first else 'second'}"
            else:
                yield from differences(first[name], second[name], tolerance, f"{place}/{name}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, tolerance, f"{place}/{number}")
    elif isinstance(first, float) and isinstance(second, float):
        if not math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{place}: {first} and {second}, {abs(first - second):.2g} apart"
    elif first != second:
        yield f"{place}: {first!r} and {second!r}"


def main() -> None:
    """Compare two reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("first", type=Path, help="a report.json")
    parser.add_argument("second", type=Path, help="another")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="relative, and absolute for values below 1 (default: %(default)s)"
    )
    options = parser.parse_args()
    first, second = (json.loads(path.read_text("utf-8")) for path in (options.first, options.second))
    found = list(differences(first, second, options.tolerance))
    print("\n".join(found) if found else f"The same to {options.tolerance:g}, but for the seconds.")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
