"""Step 3: a run is killed by signal 9 between two steps, and the same command goes on from its checkpoint.

python -m benchmarks.gpu_hour.kill_job STEP WORD... with the words of `train_job`
"""

import signal
import subprocess
import sys


def main() -> int:
    """Run twice; the records of both come from their own output. The status of the second run."""
    step, *words = sys.argv[1:]
    command = [sys.executable, "-m", "benchmarks.gpu_hour.train_job", *words]
    killed = subprocess.run([*command, f"--kill-after={step}"], check=False).returncode
    if killed != -signal.SIGKILL:
        print(f"the first run was not killed behind step {step}: it ended with {killed}", file=sys.stderr)
        return 1
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
