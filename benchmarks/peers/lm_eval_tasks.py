"""Peer of `benchmarks/life_evaluate.py`, run where lm-eval is: tasks in a folder on a model in Hugging Face's form.

Standard input has a line {"task", "batch"} for each run, standard output a line {"seconds", "metrics", "documents"};
seconds are of CPU time, of `evaluator.evaluate` without bootstrap. {"check": ADDRESS...} runs through the adapter.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict


def run(model: Any, manager: Any, task: str) -> dict[str, Any]:
    """Evaluate a task and give each document's numbers."""
    tasks = get_task_dict([task], manager)
    began = time.process_time()
    found = evaluator.evaluate(model, tasks, bootstrap_iters=0, log_samples=True)
    seconds = time.process_time() - began
    documents = [
        {"replies": one["filtered_resps"], **{key: one[key] for key in one["metrics"]}}
        for one in sorted(found["samples"][task], key=lambda one: one["doc_id"])
    ]
    metrics = {key.split(",")[0]: value for key, value in found["results"][task].items() if isinstance(value, float)}
    return {"seconds": seconds, "metrics": metrics, "documents": documents}


def main(folder: str, tasks: str) -> None:
    """Serve runs of the model in `folder`."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    said, sys.stdout = sys.stdout, sys.stderr
    manager = TaskManager(include_path=tasks, include_defaults=False)
    for line in sys.stdin:
        job = json.loads(line)
        if "adapter" in job:
            sys.path.append(str(Path(__file__).parents[1]))  # last: its modules are named as packages are
            from lm_eval_adapter import FmscaleRun

            model: Any = FmscaleRun(**job["adapter"])
        else:
            model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=job["batch"])
        print(json.dumps(run(model, manager, job["task"]), default=str), file=said, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
