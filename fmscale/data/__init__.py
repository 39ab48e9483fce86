"""Samples of training: from datasets in a store to the microbatches of a rank.

`open.py`           opens a loader: datasets → views → plan → loader.
`sources.py`        datasets → views with weights, and their record in a run's order log.
`sample_loader.py`  what loaders share: the state {k, plan, order log}, the quarantine and its budget.
`loader.py`         iterates over a rank's microbatches of rows.
`flat_loader.py`    iterates over a rank's flat forwards.
`batch.py`          a microbatch: tokens, documents, positions, loss weights.
`forward.py`        a flat forward: samples of any length and kind, and their bounds.
`torch_dataset.py`  the loader as a torch `IterableDataset`.
`order/`            row number p of a view, by arithmetic.
`views/`            rows of a dataset: commits, masks, units.
`samples/`          samples of records: specs, decode, make, lengths.
`plan/`             sample k of a run, and the share of each rank.
`reading/`          units: planned, read ahead, verified, kept in host memory.
`provenance/`       records of deliveries, the audit, the trace.
`tokenizers/`       text to ids and back.
`workers/`          processes that do units of a job.
`chat/`             messages: formats, templates, tokens and what of them is trained.
`ingest/`           raw files to datasets.
`rendering/`        datasets of messages to datasets of tokens.
"""
