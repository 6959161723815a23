"""Merged models: loaded, changed in place, exported and pushed."""
