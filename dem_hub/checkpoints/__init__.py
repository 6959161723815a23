"""Checkpoints on disk: read tensor by tensor, written in shards, and matched to the modules of an architecture."""
