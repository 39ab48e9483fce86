"""Reads of a checkpoint.

`reader.py`         ranges of tensors from files, every chunk checked
`agree.py`          ranks that go on only together
`compatibility.py`  differences between a checkpoint and a model
`restore.py`        live tensors filled from the newest valid checkpoint
`verify.py`         every byte read again
`meta.py`           values that the run saved with its tensors
"""
