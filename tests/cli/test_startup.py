"""Imports without garbage collections: in a process of its own, and only there."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["", "import torch"], ids=["new process", "with torch"])
def test_collections_go_on_after_the_imports(first: str) -> None:
    script = f"""
import gc
{first}
from dem_hub.cli.startup import heavy_imports
with heavy_imports():
    print(gc.isenabled())
    import torch
print(gc.isenabled(), gc.get_freeze_count() > 10_000)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == (["True", "True False"] if first else ["False", "True True"])


@pytest.mark.parametrize("status", [0, 2])
def test_a_process_ends_with_its_status_and_its_exit_handlers(status: int) -> None:
    script = f"""
import atexit
from dem_hub.cli.startup import leave
atexit.register(print, "told at the end")
leave({status})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "told at the end\n")
