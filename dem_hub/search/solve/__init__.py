"""The algebra of a search: objectives, and solvers for small problems in the coefficients, none of which runs a model.

`line_search` alone calls a function that may run one: the caller's.
"""
