"""The random campaigns of `fmscale bench campaigns`.

- `outcome.py`  the outcome of some acts, and the row of a campaign
- `logs.py`  killed writers of a log
- `checkpoints.py`  damaged and exchanged files of checkpoints
- `growing.py`, `ingests.py`  a folder that grows, and killed ingests of it
- `trainings.py`  killed training runs
- `reader.py`, `caches.py`  a process that reads through a node cache, and acts on the cache of two of them
"""
