"""Places that metrics go to.

`jsonl.py`   JSONL file for machines, and its readers
`console.py` lines on a terminal for people
"""
