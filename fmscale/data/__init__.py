"""Samples of training: from datasets in a store to the microbatches of a rank.

`open.py`           opens a loader: datasets → views → plan → loader.
`loader.py`         iterates over a rank's microbatches and keeps the state {k, plan, order log}.
`batch.py`          a microbatch: tokens, documents, positions, loss weights.
`torch_dataset.py`  the loader as a torch `IterableDataset`.
`order/`            row number p of a view, by arithmetic.
`views/`            rows of a dataset: commits, masks, units.
`plan/`             sample k of a run, and the share of each rank.
`reading/`          units: planned, read ahead, verified, kept in host memory.
`provenance/`       records of deliveries, the audit, the trace.
`tokenizers/`       text to ids and back.
`ingest/`           raw files to datasets.
"""
