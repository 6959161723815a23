"""What dem_hub does on this machine's disk: the names of all files, atomic and resumable folders, strict JSON, and
sizes.

Nothing here knows what a vector or a model is; `folders` detects what a folder holds from file names alone.
"""
