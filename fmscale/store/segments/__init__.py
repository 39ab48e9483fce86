"""Segments: a work unit's output as a few write-once objects under one seal.

`seal.py`   the object that is written last and names all others
`array.py`   layout of Zarr v3 arrays: chunks, shards, indexes
`array_writer.py`   an array into local files, in one pass
`writer.py`   a segment's scratch files, then the store
`tokens.py`   token segments: reads, verified chunk by chunk
`tokens_writer.py`   documents into a token segment
`records.py`   record segments: reads, verified batch by batch
`records_writer.py`   record batches into a record segment
"""
