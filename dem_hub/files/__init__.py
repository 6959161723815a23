"""This machine's disk: the names of all files, folders that appear complete or are resumed, strict JSON, sizes.

Nothing here knows what a vector or a model is; `folders` detects what a folder holds from file names alone.
"""
