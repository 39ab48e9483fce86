"""Snapshot of the state that training goes on to change.

`snapshot.py`       one copy of the pieces, beside training where it may
`memory.py`         memory that is shared with the persist process
`copy_progress.py`  bytes of the snapshot that are final
"""
