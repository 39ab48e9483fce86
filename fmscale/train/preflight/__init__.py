"""A look at a run before its start; nothing is started or written.

- `forecast.py`   tokens, compute, memory and reads, from the config alone
- `preflight.py`  problems, warnings and the beginning of the run, from the config and the store
"""
