"""The Hugging Face Hub: the only code of dem_hub that uses the network.

Begin with `download.resolve`, which finds a base, a vector or a recipe, and with `commits.push`, which publishes one.
"""
