"""Places that metrics go to.

`protocol.py`     contract of a sink, and the run that it gets
`run_sinks.py`    the sinks of a run together, each failing alone
`jsonl.py`        JSONL file for machines, and its readers
`console.py`      lines on a terminal for people
`tensorboard.py`  event files
`wandb.py`        Weights & Biases
`mlflow.py`       MLflow
"""
