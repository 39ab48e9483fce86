"""Reads of a checkpoint.

`reader.py`         ranges of tensors from files, every chunk checked
`agree.py`          agreement of all ranks before they go on
`compatibility.py`  differences between a checkpoint and a model
`restore.py`        live tensors filled from the newest valid checkpoint
`verify.py`         a check of every byte
`meta.py`           values that the run saved with its tensors
"""
