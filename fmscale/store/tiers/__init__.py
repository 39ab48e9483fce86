"""Tiers: sources of chunks from near to far, and the verification of every chunk.

`fetch.py`   verified reads, from the cache, the tiers and the store
`tier.py`    the protocol of tiers between cache and store
`cache.py`   the node's cache: a directory shared by ranks, with a byte limit
`cache_file.py`   one object's sparse file in the cache
`range_lock.py`   locks on byte ranges, released by the kernel
"""
