"""Segments: a work unit's output as a few write-once objects under one seal.

`seal.py`   the object that is written last and names all others
`array.py`   layout of Zarr v3 arrays: chunks, shards, indexes
`array_writer.py`   an array into local files, in one pass
`writer.py`   a segment's scratch files, then the store
`documents_writer.py`   ids of a segment's documents, and the table of them
`handle.py`   a handle on a segment: reads of arrays and documents, verified chunk by chunk
`tokens.py`   token segments
`tokens_writer.py`   documents into a token segment
`records.py`   record segments: batches found by the index
`records_writer.py`   records into a record segment
`kinds.py`   segments of every kind by their documents
`records_version_1.py`   record segments of version 1: reads, verified batch by batch
"""
