"""Measurements of merged models: losses, derivatives and logits at any coefficients, each made once and cached.

`loss_evaluator` measures losses on data and `score_evaluator` a caller's own score; the other modules are their parts.
"""
