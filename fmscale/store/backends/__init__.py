"""Backends: the protocol of a store, and its implementations.

`protocol.py`   methods of every backend; `ObjectInfo`, counts of requests
`local.py`   a directory: temporary file, then rename or link, then fsync
`posix.py`   whole reads and writes, fsync, the operating system's errors as store errors
`open_files.py`   files of a directory kept open for the next read
`objects.py`   S3, GCS, Azure and memory through obstore
`credentials.py`   S3 credentials from a profile
`fsspec.py`   every other protocol of fsspec; read-only until a probe passes
`retry.py`   repeats with jitter until a deadline
`http_errors.py`   meaning of an object store's failed answer
`write_once.py`   creation of objects whose name follows from their content
"""
