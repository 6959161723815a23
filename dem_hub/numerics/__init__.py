"""Numerics: slices, buffers, threads, compiled loops, random bits, rounding and singular vectors."""
