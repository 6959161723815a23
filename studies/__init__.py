"""Studies with dem_hub, outside of the library."""
