"""Workers: processes that do the units of a job, one after another.

`pool.py`       the job's side: processes get units and send outcomes
`serve.py`      the worker's side
`messages.py`   lines of JSON between both, progress, and errors that keep their class
"""
