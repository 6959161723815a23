"""Default values, and choices between words, that a Python function and an option of `dem-hub` share.

They are in a module of their own because the command line shows them in `--help`, and must not import torch for that.
Each value is written here once: a function and its option cannot disagree. A default that only a Python function has
stays with that function.
"""

from typing import Literal

# How the losses of several distributions become one number, and how many coefficients a vector has.
ObjectiveKind = Literal["mean", "worst", "improvement"]
Granularity = Literal["model", "block", "group"]

OBJECTIVE: ObjectiveKind = "mean"
GRANULARITY: Granularity = "model"

# How the sum of base and deltas becomes 16 bits. "stochastic" is unbiased.
Rounding = Literal["stochastic", "nearest"]

# How files are compared with their hashes: "quick" believes a hash that was worked out before, as long as the file's
# size, times and inode are the same. "full" hashes all files again.
Verify = Literal["quick", "full"]
VERIFY: Verify = "quick"

# The surroundings that pictures are drawn for.
Theme = Literal["light", "dark"]
THEME: Theme = "light"

# How a search looks for coefficients: "auto" chooses a strategy, and says which.
METHOD = "auto"

# Lower and upper bound of every coefficient; their sum is free, and is often above 1. Chosen by hand, not measured.
BOUNDS = (0.0, 1.5)

# Fraction of the documents that a search does not see; its result is compared with baselines on them. Chosen by hand,
# not measured.
HELD_OUT = 0.25

# Dtype of the model during a search. 16 bits would round away a part of what a small step changes.
SEARCH_DTYPE = "float32"

# Seed of the held-out split and of samplers.
SEED = 0

# Windows in one forward pass. A result does not depend on it. Chosen by hand, not measured.
BATCH_SIZE = 8

# Tokens in a window. A longer document is cut into several windows. Chosen by hand, not measured.
MAX_LENGTH = 1024

# Largest file of weights before another one begins, as in huggingface_hub's `save_torch_model`.
MAX_SHARD_SIZE = "5GB"
