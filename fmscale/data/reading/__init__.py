"""Reading of a plan's units ahead of their use.

`planner.py`      steps → blocks of rows, and reads of their units.
`prefetch.py`     blocks, made by a thread or by the consumer.
`arena.py`        host memory: slots for units, buffers for microbatches.
`readers.py`      a unit reader for each source.
`unit_reader.py`  a unit → verified tokens and the ends of documents.
"""
