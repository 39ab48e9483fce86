#!/bin/sh
# Trains a config by torchrun. On one node:
#
#     launch/torchrun.sh run.yaml [key=value ...]
#
# On each of several nodes (NODE_RANK: 0 on the first, then 1, 2 ...):
#
#     NODES=4 NODE_RANK=0 MASTER_ADDR=node-1 launch/torchrun.sh run.yaml
set -eu

NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} # the first node, by a name that all nodes reach
MASTER_PORT=${MASTER_PORT:-29500}     # two runs on one node need two ports

# Ranks on this node: one for each GPU, or a single rank without GPUs.
PROCS=${PROCS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$PROCS" -gt 0 ] || PROCS=1

if [ "$NODES" -gt 1 ] && [ "$MASTER_ADDR" = 127.0.0.1 ]; then
    echo "MASTER_ADDR must name the first of the $NODES nodes" >&2
    exit 2
fi

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
# If a node has several networks, name the fast network:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# The agent would die of SIGUSR1, and so would a rank that is still starting: both begin with the signal ignored.
trap '' USR1
# torchrun reads PET_* as options, and would meet elsewhere.
for name in $(env | sed -n 's/^\(PET_[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$name"; done
# On several nodes each shows its first rank alone, and writes the output of all its ranks below LOGS.
if [ "$NODES" -gt 1 ]; then
    logs="--local-ranks-filter 0 --tee 3 --log-dir ${LOGS:-logs}/node-$NODE_RANK"
else
    logs=
fi
# --rdzv-backend fmscale: the agents' store listens where MASTER_ADDR is, not on all interfaces, and holds no pickles.
# --shutdown-timeout: on SIGTERM the agent gives its ranks 5 minutes to save, and not 30 s.
# shellcheck disable=SC2086  # several words, or none
exec torchrun $logs --nnodes "$NODES" --rdzv-backend fmscale --rdzv-conf "rank=$NODE_RANK" \
    --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" \
    --nproc-per-node "$PROCS" --shutdown-timeout 300 \
    --no-python fmscale train "$@"
