"""`DEMCallback`: a run of transformers' `Trainer` that leaves a distribution vector."""

from dem_hub.training.callback import DEMCallback

__all__ = ["DEMCallback"]
