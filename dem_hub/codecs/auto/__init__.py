"""`codec="auto"`: divide a budget of bytes among the tensors of a vector, and fit each tensor to its share."""
