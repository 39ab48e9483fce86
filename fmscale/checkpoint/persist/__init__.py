"""Persist process: it stores a rank's part of a checkpoint, and commits it for all ranks.

`job.py`          the request and the events that cross between trainer and process
`client.py`       the trainer's end: starts the process, and starts it again
`process.py`      the process's end: a message is a call of the worker
`worker.py`       two stages: store and seal, then commit
`rank_part.py`    digests, references, files, and the seal last
`stream.py`       a file's bytes while they become known
`file_writer.py`  one file on a file system or an object store, with checksums
`commit.py`       rank 0 gathers the seals and appends the log entry; the others wait for it
`heartbeat.py`    signs of life after the trainers have ended
`retention.py`    checkpoints that stay, and the deletion of the others
"""
