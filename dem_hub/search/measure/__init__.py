"""Measurements of merged models: losses, derivatives and logits of any coefficients, each made once and kept in a cache.

`loss_evaluator` measures losses on data and `score_evaluator` a caller's own score; the other modules are their parts.
"""
