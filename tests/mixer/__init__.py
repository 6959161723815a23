"""Tests of `dem_hub/mixer/`."""
