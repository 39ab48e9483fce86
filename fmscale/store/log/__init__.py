"""Logs: numbered entries that alone make data visible; leases and retirement follow from their order.

`log.py`   entry n is created by put-if-absent, by a writer that has read entry n-1
`entry.py`   one entry as bytes, with its digest and its link to the entry before
`lease.py`   the right to append, lost when another process takes it
`retirement.py`   commits put out of use, pins, and garbage collection
`keyset.py`   sets of keys and folders
`runs.py`   runs of a store by name
"""
