"""The engine: a model whose weights, gradients and optimizer state are spread over ranks.

- `protocol.py`          the operations of an engine
- `module.py`            from the config to an engine; the model as the module that it shards
- `deepspeed.py`         DeepSpeed ZeRO as an engine
- `deepspeed_config.py`  DeepSpeed's settings from the run's
- `gather.py`            rows of all ranks for objectives, with a gradient
- `optimizer.py`         AdamW over two parameter groups
- `partitions.py`        masters and moments as the pieces of a checkpoint
- `accelerator.py`       DeepSpeed on the device of this rank
- `cpu_adam.py`          DeepSpeed's Adam in host memory, compiled at first use
- `cores.py`             cores of a rank for that, and for compilers
- `memory.py`            a lack of memory on the device
"""
