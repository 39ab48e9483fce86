#!/bin/sh
# Trains a config by mpirun of Open MPI, MPICH or Intel MPI. On this node:
#
#     launch/mpirun.sh run.yaml [key=value ...]
#
# On several nodes, with equal numbers of ranks (the first has rank 0):
#
#     HOSTS=node-1,node-2 PROCS=8 launch/mpirun.sh run.yaml
set -eu

HOSTS=${HOSTS:-}
MASTER_PORT=${MASTER_PORT:-29500} # two runs on one node need two ports

# Ranks on a node: one for each GPU, or a single rank without GPUs.
PROCS=${PROCS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$PROCS" -gt 0 ] || PROCS=1

# One OpenMP thread a rank: two ranks of two threads each on two cores took six times longer a step.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# NCCL then names the link or device that failed; by default a broken network is only a timeout.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# Unbuffered, so that the log has the last lines of a killed rank.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"
# A crash in native code then shows the Python stack of each thread.
export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER:-1}"
# Blocks of a GPU's memory grow in place: forwards of changing lengths leave fewer holes.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"
# NCCL's last 2000 collectives are kept, and written at a time-out: they name the rank that was not there.
export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"
export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}"
# The ranks meet over TCP here, so the installed mpi4py may find any MPI.
if [ -n "$HOSTS" ]; then MASTER_ADDR=${HOSTS%%,*}; else MASTER_ADDR=127.0.0.1; fi
export MASTER_ADDR MASTER_PORT

nodes=$(echo "${HOSTS:-localhost}" | tr ',' '\n' | wc -l)
ranks=$((nodes * PROCS))

# A starting rank would die of SIGUSR1, which mpirun passes on: the rank ignores the signal until it is ready.
# shellcheck disable=SC2016  # expanded in the rank's shell
rank='trap "" USR1; exec "$@"'

if mpirun --version 2>&1 | grep -q 'Open MPI'; then
    # --bind-to none: mpirun would pin a rank with all its loader threads to one core. -x: to the other nodes.
    exec mpirun -n "$ranks" --host "$(echo "${HOSTS:-localhost}" | sed "s/,/:$PROCS,/g"):$PROCS" --bind-to none \
        -x OMP_NUM_THREADS -x NCCL_DEBUG -x PYTHONUNBUFFERED -x PYTHONFAULTHANDLER -x PYTORCH_ALLOC_CONF \
        -x TORCH_FR_BUFFER_SIZE -x TORCH_NCCL_DUMP_ON_TIMEOUT -x MASTER_ADDR -x MASTER_PORT \
        sh -c "$rank" sh fmscale train "$@"
fi
# MPICH and Intel MPI pass the environment on by default.
if [ -n "$HOSTS" ]; then
    exec mpirun -n "$ranks" -ppn "$PROCS" -hosts "$HOSTS" sh -c "$rank" sh fmscale train "$@"
fi
exec mpirun -n "$ranks" -ppn "$PROCS" sh -c "$rank" sh fmscale train "$@"
