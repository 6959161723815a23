"""Merging: the recipe, opening what it names, and the base plus the weighted sum of its vectors.

Start with `config.DEMConfig` (the recipe), `opening.open_recipe` (its base and vectors) and `merge.Merge` (the sum of
any slice of any tensor). The sum is computed when a slice is asked for, so whoever loads or writes a model decides
what is in memory.
"""
