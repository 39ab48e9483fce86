"""deepspeed's launcher on other hosts, apart from other runs there: `python -m fmscale.launch.over_ssh ARGUMENTS`.

deepspeed ends the ranks of a host by `pkill -f` of words that all of its launches share: where two runs have a host in
common, the end of one ended the other. The other's pdsh was ended too, and deepspeed gave status 0 for it, as it looks
for statuses above 0. Here the words name the run's meeting point, and a pdsh that signal N ended gives 128 + N.
"""

import signal
import subprocess
import sys
from typing import NamedTuple

from deepspeed.launcher import runner
from fmscale.launch.deepspeed import of_run

STATUS_OF_SIGNAL = ("sh", "-c", '"$@"; exit $?', "sh")
"""Words in front of a command, whose end by signal N is then the status 128 + N."""


class _Commands(NamedTuple):
    """Commands that start and end a run's ranks, and the environment of both."""

    start: list[str]
    end: list[str]
    environment: dict[str, str]


def main() -> None:
    """deepspeed's `main`. If a signal ended pdsh, the ranks on the hosts, which would live on, are ended as well."""
    made: list[_Commands] = []

    class OneRun(runner.PDSHRunner):  # type: ignore[misc]
        def get_cmd(self, environment: dict[str, str], active_resources: dict[str, object]) -> _Commands:
            start, end, environment = super().get_cmd(environment, active_resources)
            own = f"'{of_run(self.args.master_addr, self.args.master_port)}'"
            made.append(_Commands([*STATUS_OF_SIGNAL, *start], [*end[:-1], own], environment))
            return made[0]

    runner.PDSHRunner = OneRun
    try:
        runner.main()
    except SystemExit as end:
        # A rank that signal N ended gives 256 - N.
        if made and isinstance(end.code, int) and 128 < end.code <= 128 + signal.NSIG:
            print(f"pdsh was ended by signal {end.code - 128}: the ranks on all hosts end", file=sys.stderr, flush=True)
            subprocess.run(made[0].end, env=made[0].environment, check=False)
        raise


if __name__ == "__main__":
    main()
