"""The worker's side of `workshop`: `python -m benchmarks.kernels.serve SERVICE ARGUMENT`.

SERVICE is a module whose `service(ARGUMENT)` gives a function (request, trying) -> answer. Requests and
answers are JSON lines; before a risky call the service calls `trying(name)`, which writes a line too. After
`DeviceBroken` the process ends, as its CUDA context is unusable.
"""

import importlib
import json
import os
import sys
from typing import Any

from benchmarks.kernels.timing import DeviceBroken, describe


def resolve(name: str) -> Any:
    """Result of calling "package.module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)()


def main() -> int:
    """Serve requests until stdin ends."""
    service, argument = sys.argv[1:]
    # compilers and peers print to stdout: their output goes to stderr, the answers to the original stdout
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    answer = importlib.import_module(service).service(argument)
    say(trying=None)
    for line in sys.stdin:
        broken = False
        try:
            reply = {"ok": True} | answer(json.loads(line), lambda name: say(trying=name))
        except Exception as error:
            broken = isinstance(error, DeviceBroken)
            reply = {"ok": False, "reason": str(error) if broken else describe(error)}
        say(**reply, broken=broken)
        if broken:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
