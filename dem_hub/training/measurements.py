"""Figures of a fresh vector that are worth logging next to the training loss, and the plot of its layers.

They are read from the vector's records and compact parts, so they cost little beside the training itself.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import MissingDependencyError
from dem_hub.files.names import NORMS_PLOT
from dem_hub.vectors.comparison import compare
from dem_hub.vectors.norms import tensor_norms
from dem_hub.vectors.pictures import draw_vector_norms
from dem_hub.vectors.vector import DistributionVector

logger = logging.getLogger(__name__)


def measure_vector(
    vector: DistributionVector, base: Base, others: Sequence[DistributionVector], plot_folder: Path
) -> dict[str, float]:
    """Measure a vector, and plot the norm of each layer if matplotlib is installed.

    Args:
        vector ([`DistributionVector`]): The vector.
        base ([`Base`]): Its base.
        others (`Sequence[DistributionVector]`): Vectors to compute the cosine to.
        plot_folder (`Path`): Folder for the plot.

    Returns:
        `dict[str, float]`: `dem/norm`, `dem/bytes`, and `dem/cosine/NAME` for each of the others.
    """
    norms = tensor_norms(vector, base)
    measured = {"dem/norm": sum(norm**2 for norm in norms.values()) ** 0.5, "dem/bytes": float(vector.nbytes)}
    if others:
        comparison = compare([vector, *others], base)
        for name, cosine in zip(comparison.names[1:], comparison.cosines[0][1:], strict=True):
            measured[f"dem/cosine/{name}"] = cosine
    try:
        draw_vector_norms(norms, base, "The norm of the vector, by layer").savefig(plot_folder / NORMS_PLOT)
    except MissingDependencyError as error:
        logger.info("No picture of the layers: %s", error)
    return measured
