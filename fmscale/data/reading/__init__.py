"""Reading of a plan's units ahead of their use.

`planner.py`      steps → blocks of rows, and reads of their units.
`prefetch.py`     blocks, made by a thread or by the consumer.
`arena.py`        host memory: slots for units, buffers for microbatches.
`readers.py`      a unit reader for each source.
`unit_reader.py`  a unit → verified tokens and the ends of documents.
`open_segments.py`  open segments of a view, bounded, and their arrays.

Flat forwards:
`flat_planner.py`    steps → forwards of samples, and reads of their units.
`maker.py`           forwards → tensors, in threads, in order.
`sample_sources.py`  units, spec and lengths of each source.
`record_reader.py`   a unit of records → verified record batches.
`unit.py`            a unit as records, of tokens or of records.
"""
