"""The persist process: it stores a rank's part of a checkpoint; rank 0's process commits for all ranks.

`job.py`          the request and the events that cross between trainer and process
`client.py`       the trainer's end: starts the process, and restarts a dead process
`process.py`      the process's end: each message calls the worker
`worker.py`       two stages: the steps from the snapshot to the seal, then commit
`step.py`         a save on its way, and the type of a step
`rank_part.py`    the steps: digests, references and files; the seal
`stream.py`       a file's bytes, added span by span
`file_writer.py`  one file on a file system or an object store, with checksums
`commit.py`       rank 0 gathers the seals and appends the log entry; all other ranks wait for the entry
`heartbeat.py`    signs of life after the trainers have ended
`retention.py`    the choice of kept checkpoints, and the deletion of all others
"""
