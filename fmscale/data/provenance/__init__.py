"""Provenance: proof of what was delivered, and the documents and records behind it.

`delivery.py`  record of the samples that a rank received.
`digests.py`   digests of samples, received or made again.
`stored.py`    the stored documents or records of a source, and the samples that they make.
`audit.py`     comparison of the records with what is stored.
`expected.py`  samples that the plan promises, made without loader, cache or ranks.
`trace.py`     step → documents or records, document or record → steps.
"""
