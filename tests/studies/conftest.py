"""The study's modules are imported as its scripts import them, by their bare names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "study"))
