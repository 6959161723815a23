"""Transformations of vectors: distribution vectors in, as many distribution vectors out.

A weighted sum gives each vector a number. A transformation changes the vectors first, so that their sum is better than
that of the originals: RegMean by what each layer's inputs are (`regmean.py`), TIES and DARE by the size and the signs of
the deltas. What comes out is saved, pushed, merged and exported like any other vector.
"""

from dem_hub.transformations.dare import dare
from dem_hub.transformations.own_data import gather_statistics
from dem_hub.transformations.regmean import regmean
from dem_hub.transformations.ties import ties

__all__ = ["dare", "gather_statistics", "regmean", "ties"]
