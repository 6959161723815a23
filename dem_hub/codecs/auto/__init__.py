"""`codec="auto"`: choose a codec for each tensor of a vector, within a budget of bytes or of error.

* `budget`: `Auto`, the options; `Plan` and `make_plan`, which divide a budget among tensors after a first look at all
  of them.
* `encoder`: `AutoEncoder`, which makes a plan and encodes each tensor within its share.
"""
