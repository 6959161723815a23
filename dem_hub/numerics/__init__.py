"""The arithmetic that everything else stands on; nothing here knows of models, vectors or files.

* `slices`: parts of tensors, one slice a dimension.
* `buffers`: memory that a thread reuses from block to block.
* `threads`: work on all cores, one core a task.
* `noise`: random bits by seed, name and position, the same on every device.
* `kernels`: the compiled loops of a merge on the CPU.
* `precision`: the widest float dtype of a device.
* `rounding`: from a wide sum to the target dtype, stochastically or to nearest.
* `norms`: sums of squares in float64, and the check for NaN and inf.
* `svd`: truncated singular value decompositions.
"""
