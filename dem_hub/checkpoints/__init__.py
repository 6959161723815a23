"""Safetensors checkpoints: lazy tensors, the reader, the writer, and the base model with its fingerprint.

A checkpoint's tensors are known by their names on disk. No model is built to read, compare or write them.
"""
