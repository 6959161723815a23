"""Input statistics: what the inputs of each linear layer look like on one data distribution.

A layer's inputs X, (tokens, D), have second moments X^T X / tokens, a matrix (D, D). RegMean needs these matrices, one
for each distribution. They are kept as their leading eigenvectors and what these leave of the diagonal, which is a few
megabytes a model (`moments.py`), are gathered while a model runs (`gathering.py`), in a sketch of bounded size
(`sketch.py`), and written to one file beside a vector (`statistics_file.py`).
"""
