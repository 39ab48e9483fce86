"""Odd and hostile input for `fmscale bench ingest`.

- `case.py`  a case: its input, its documents, and the reasons for what is left out
- `plain.py`  plain readers of documents, without fmscale
- `lines.py`, `texts.py`, `streams.py`, `tables.py`, `records.py`  cases of formats, encodings, compression, types
- `places.py`, `changing.py`, `objects.py`, `memory.py`  cases of links and names, changing files, S3 keys, memory
- `job.py`, `rows.py`  a process that ingests, and the documents of a dataset
- `check.py`, `ground.py`, `bucket.py`  run and judge cases, below a folder or in a bucket
"""
