"""Provenance: proof of what was delivered, and the documents behind it.

`delivery.py`  record of the rows that a rank received.
`audit.py`     comparison of the records with the stored documents.
`expected.py`  rows that the plan promises, read without loader, cache or ranks.
`trace.py`     step → documents, document → steps.
"""
