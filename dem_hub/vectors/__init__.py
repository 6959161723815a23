"""Distribution vectors: extract, read, write, compare and publish them, and keep them in stores.

`vector` has `DistributionVector` and `store` has `VectorStore`, both also importable from `dem_hub`. `extraction`
makes a vector of two checkpoints; `reader` and `writer` are its files; `lora` reads and writes LoRA adapters;
`compatibility` checks that a vector fits a base; `comparison` has norms and cosines. Nothing is imported here, so
that `vectors.config` can be read without torch.
"""
