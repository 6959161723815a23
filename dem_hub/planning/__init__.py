"""What a search, a load, a merge or a server will take, from headers and configs alone.

Start with `planner`, which plans each step; `ways_out` adds what to change where a step does not fit. `bounds` has the
arithmetic, and `placement` asks transformers where the parts of a model go.
"""
