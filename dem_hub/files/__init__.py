"""Files and folders that dem_hub writes: their names, atomic and resumable writing, and strict JSON."""
