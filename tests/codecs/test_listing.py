"""The options that the command line shows are those of the codecs' dataclasses, and reading them loads no torch."""

import dataclasses
import subprocess
import sys
from importlib import import_module

import pytest

from dem_hub.codecs import CODECS
from dem_hub.codecs.auto.budget import DEFAULT_SHARE, Auto
from dem_hub.codecs.listing import AUTO, INTERNAL, OFFERED, CodecInfo, list_codecs
from dem_hub.numerics.svd import DEFAULT_RANK


@pytest.mark.parametrize("codec", [pytest.param(codec, id=codec.name) for codec in list_codecs()])
def test_options_are_the_fields(codec: CodecInfo) -> None:
    kind = {AUTO: Auto, **CODECS}[codec.name]
    assert [(option.name, option.default, option.help) for option in codec.options] == [
        (item.name, item.default, item.metadata["help"]) for item in dataclasses.fields(kind)
    ]
    assert kind.__doc__.startswith(codec.summary[:20])


def test_every_codec_is_listed_once() -> None:
    assert [codec.name for codec in list_codecs()] == [AUTO, *OFFERED]
    assert list(CODECS) == [*OFFERED, *INTERNAL]
    for name, home in {**OFFERED, **INTERNAL}.items():
        module, _, kind = home.rpartition(".")
        assert getattr(import_module(f"dem_hub.codecs.{module}"), kind) is CODECS[name]
        assert CODECS[name].name == name


def test_types_are_those_of_a_shell() -> None:
    types = {(codec.name, option.name): option.type for codec in list_codecs() for option in codec.options}
    assert types["auto", "max_bytes"] is str
    assert types["auto", "max_error"] is float
    assert types["lowrank", "rank"] is int
    assert types["lowrank", "energy"] is float
    assert types["dense", "dtype"] is str


def test_help_has_the_defaults_that_stand_elsewhere() -> None:
    texts = {(codec.name, option.name): option.help for codec in list_codecs() for option in codec.options}
    assert f"{DEFAULT_SHARE:.0%} by default" in texts["auto", "max_bytes"]
    assert f"{DEFAULT_RANK} unless" in texts["lowrank", "rank"]


def test_listing_loads_no_torch() -> None:
    code = "import sys, dem_hub.codecs.listing as listing; listing.list_codecs(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
