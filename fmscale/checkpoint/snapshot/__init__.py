"""Snapshot of the training state, which training may change while the save is written.

`snapshot.py`       one copy of the pieces, made beside training where possible
`memory.py`         memory that is shared with the persist process
`copy_progress.py`  bytes of the snapshot that are final
"""
