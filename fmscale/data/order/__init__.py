"""Order of training as a function: integers alone, no store and no plan (docs/order.md).

`feistel.py`  permutations of {0 … n−1} by arithmetic, and the keys that name them.
`units.py`    rows of several commits as units of b rows.
`order.py`    position → row through windows and lanes, and back.
`mixture.py`  sample of a stage → source and number there, and back.
"""
