"""Evaluation by tasks: multiple choice, generated answers, rolling perplexity, and code.

- `task.py`         a task from YAML, with its documents
- `prompts.py`      questions, the texts that a model reads for them, and the right answers
- `metrics.py`      accuracies with intervals, perplexities, pass@k
- `code.py`         programs that a model wrote, run apart
- `evaluate.py`     a task on a model: results by document, and the report
- `overlap.py`      n-grams that a task has in common with a training dataset
"""

from fmscale.infer.tasks.evaluate import TaskResult, evaluate_task
from fmscale.infer.tasks.overlap import Overlap, find_overlap
from fmscale.infer.tasks.task import LoadedTask, load_task

__all__ = ["LoadedTask", "Overlap", "TaskResult", "evaluate_task", "find_overlap", "load_task"]
