"""The share of a delta's elements that a transformation keeps."""

from dem_hub.errors import ConfigError


def check_density(density: float) -> None:
    """Refuse a share that keeps nothing, or more than all.

    Raises:
        `ConfigError`: The density is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}; it must be above 0 and at most 1.")
