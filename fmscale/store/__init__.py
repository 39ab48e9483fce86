"""Bytes under keys on any store, and on top of them logs, datasets and verified reads.

`open.py`   backend of a store's URL, with options and credentials
`digest.py`   checksums of chunks and digests of objects
`keys.py`   keys that every store takes
`backends/`   local directories, object stores, other file systems through fsspec
`log/`   numbered entries, leases, retirement
`segments/`   arrays, tokens and records, sealed by a digest
`datasets/`   commits of segments, manifests, verification
`tiers/`   verified reads through the node's cache
`doctor/`   the probe, measurements and advice behind `fmscale doctor`
"""
