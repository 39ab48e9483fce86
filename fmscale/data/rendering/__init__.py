"""Rendered datasets: records of messages, made into tokens by a template and a tokenizer.

`unit.py`   a segment of messages becomes a segment of tokens
`job.py`    a dataset from its source's commits, continued after a kill and with the source's new commits
`show.py`   rendered records as texts again, with what is trained
"""
