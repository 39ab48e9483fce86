"""Places that metrics go to.

`protocol.py` protocol of a sink
`jsonl.py`    JSONL file for machines, and its readers
`console.py`  lines on a terminal for people
"""
