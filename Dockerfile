# On a CPU:
#   docker build -t fmscale .
# On NVIDIA GPUs, with the CUDA build of torch (the runtime's own libraries come with it):
#   docker build -t fmscale:gpu --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 --build-arg PIP_EXTRA_INDEX_URL= .
# Then, with the current folder as the place of configs, stores and runs:
#   docker run --rm -v "$PWD:/work" fmscale launch my.yaml --procs-per-node 2
#   docker run --rm -v "$PWD:/work" --gpus all --ipc=host fmscale:gpu launch my.yaml
# Under Slurm, Kubernetes and SkyPilot: docs/launching.md.
ARG BASE=python:3.12-slim

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# DeepSpeed compiles its CPU Adam and Triton its launchers, with g++ and Python's headers. Images of CUDA have no Python.
RUN packages=g++ \
    && if ! command -v python3 >/dev/null; then packages="g++ python3-dev python3-venv"; fi \
    && apt-get update \
    && apt-get install -y --no-install-recommends $packages \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/fmscale
ENV PATH=/opt/fmscale/bin:$PATH
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c /wheels/constraints.txt "$(ls /wheels/fmscale-*.whl)[s3,gpu]"
# Take your own id (--build-arg UID=$(id -u)) where it is another: /work is yours. Ubuntu has a user 1000 already.
ARG UID=1000
RUN useradd --create-home --non-unique --uid ${UID} fmscale && install -d -o ${UID} /work
USER fmscale
WORKDIR /work
ENTRYPOINT ["fmscale"]
CMD ["--help"]
