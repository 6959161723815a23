"""Merging: a recipe, and the base plus the weighted sum of its vectors, tensor by tensor."""
