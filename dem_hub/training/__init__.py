"""`DEMCallback`: take a distribution vector from a run of transformers' `Trainer`.

`callback` has the Trainer's events, `source` decides what the vector is, `live_model` and `gathering` read the
model in training, and `background_push` pushes while training goes on.
"""

from dem_hub.training.callback import DEMCallback

__all__ = ["DEMCallback"]
