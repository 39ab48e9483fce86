"""`fmscale launch` with ranks that run a program of a test in the place of fmscale.

python -m tests.launch.chain_launch PROGRAM launch CONFIG [WORD ...]
"""

import sys

from fmscale.launch import programs

from fmscale.cli.main import main

if __name__ == "__main__":
    program, find = sys.argv.pop(1), programs.find_program
    programs.find_program = lambda name: program if name == "fmscale" else find(name)
    main()
