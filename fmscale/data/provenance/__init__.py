"""Provenance: proof of what was delivered, and the documents behind it.

`delivery.py`  record of the rows that a rank received.
`audit.py`     judgement of the records against the stored documents.
`expected.py`  rows that the plan promises, read without loader, cache or ranks.
`trace.py`     step → documents, document → steps.
"""
