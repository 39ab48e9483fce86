"""A look at a run before its start; nothing is started or written.

- `forecast.py`     tokens, compute, memory and reads, from the config alone
- `stages.py`       memory and traffic of a rank at each ZeRO stage
- `activations.py`  tensors that a forward keeps for backward
- `advice.py`       the stage that fits the memory of a device
- `preflight.py`    problems, warnings and the beginning of the run, from the config and the store
"""
