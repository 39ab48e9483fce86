#!/bin/sh
# Trains a config by deepspeed's launcher. On this node:
#
#     launch/deepspeed.sh run.yaml [key=value ...]
#
# On the nodes of a hostfile (a line "node-1 slots=8" for each), which ssh must reach without a password:
#
#     HOSTFILE=hosts launch/deepspeed.sh run.yaml
set -eu

HOSTFILE=${HOSTFILE:-}
MASTER_PORT=${MASTER_PORT:-29500} # two runs on one node need two ports

# Ranks on this node, without a hostfile: one for each GPU, or a single rank without GPUs.
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

if [ -z "$HOSTFILE" ]; then
    # The launcher would die of SIGUSR1, and so would a rank that is still starting.
    trap '' USR1
    # Without this option deepspeed takes /job/hostfile, if that file exists.
    exec deepspeed --hostfile /dev/null --num_accelerators "$PROCS" --master_port "$MASTER_PORT" \
        --no_local_rank --no_python fmscale train "$@"
fi

# deepspeed trains on this node alone if it does not find its hostfile.
if [ ! -s "$HOSTFILE" ]; then
    echo "the hostfile $HOSTFILE is not there, or empty" >&2
    exit 2
fi
# The first host has rank 0. deepspeed passes only variables of its own choice to the nodes: env passes the others.
# --force_multi: a hostfile with one host means that host, not this node.
# over_ssh is deepspeed's launcher, whose end would end all of its runs on the hosts: so it ends this run alone.
first=$(awk '!/^[[:space:]]*(#|$)/ { print $1; exit }' "$HOSTFILE")
exec python3 -m fmscale.launch.over_ssh --hostfile "$HOSTFILE" --force_multi \
    --master_addr "$first" --master_port "$MASTER_PORT" --no_local_rank --no_python env \
    OMP_NUM_THREADS="$OMP_NUM_THREADS" NCCL_DEBUG="$NCCL_DEBUG" \
    PYTHONUNBUFFERED="$PYTHONUNBUFFERED" PYTHONFAULTHANDLER="$PYTHONFAULTHANDLER" \
    PYTORCH_ALLOC_CONF="$PYTORCH_ALLOC_CONF" TORCH_FR_BUFFER_SIZE="$TORCH_FR_BUFFER_SIZE" \
    TORCH_NCCL_DUMP_ON_TIMEOUT="$TORCH_NCCL_DUMP_ON_TIMEOUT" "$(command -v fmscale)" train "$@"
