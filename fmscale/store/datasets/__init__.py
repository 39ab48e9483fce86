"""Datasets: named logs whose commits make a job's sealed segments visible at once.

`dataset.py`   a dataset: its live commits, and the append of a new commit
`commit.py`   one commit: the log entry, its manifests, its references
`manifest.py`   segments of one split, and the place of a token among them
`manifest_writer.py`   seals of segments into a manifest
`columns.py`   derived columns: a value a record, worked out after the commit
`columns_writer.py`   values, a segment at a time, into a column
`by_digest.py`   small objects under the digests of their bytes
`tokenizers.py`   tokenizers under their digest
`templates.py`   chat templates under their digest
`files.py`   small files of an imported model under their digest
`verify.py`   check of every byte that commits reference
`object_check.py`   check of one object: size, digest, chunks
"""
