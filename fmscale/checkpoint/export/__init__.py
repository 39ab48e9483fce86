"""Formats of other software.

`export.py`  Hugging Face and safetensors, tensor by tensor
`dcp.py`     torch.distributed.checkpoint
`zarr.py`    a read-only Zarr group that copies nothing
"""
