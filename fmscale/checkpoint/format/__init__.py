"""Format of a checkpoint on the store.

`piece.py`     a range of a logical tensor, and its live memory
`layout.py`    pieces in safetensors files; the snapshot is the files' image
`names.py`     keys of all objects
`seal.py`      the pieces of one rank, stored after its files
`manifest.py`  the pieces of all ranks; the log entry has its digest
"""
