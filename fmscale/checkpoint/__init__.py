"""Checkpoints: snapshot, persist, commit, restore at any number of ranks, export.

`saver.py`       a snapshot of the live state; the persist process does everything else
`format/`        names, layouts and manifests of what is stored
`weights.py`     weights that another program made, as a checkpoint of one file at a time in memory
`snapshot/`      the copy of the state that a save works from
`persist/`       the process that stores a rank's part, commits and retires
`catalog.py`     the checkpoints of a run, read from its log
`read/`          restore, and read of single tensors, with every chunk checked
`checkpoint.py`  a checkpoint as logical tensors by name
`base.py`        the checkpoint on which an adapter run stands
`weights.py`     a checkpoint of weights that no training made
`export/`        formats of other software
"""
