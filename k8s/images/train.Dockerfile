# What jobs run in: torch, DeepSpeed and Ray. In the root of the repository, for CPUs:
#
#   docker build -f k8s/images/train.Dockerfile -t REGISTRY/fathom-train --target cpu \
#     --build-arg PYTHON=python:3.11-bookworm@sha256:... .
#
# and for GPUs, with Transformer Engine, which is compiled (CUDA is one with Python 3.11, pip and nvcc of CUDA 13, VERSION
# one of Transformer Engine, 2.20 or newer):
#
#   docker build -f k8s/images/train.Dockerfile -t REGISTRY/fathom-train --target gpu \
#     --build-arg PYTHON=python:3.11-bookworm@sha256:... --build-arg CUDA=...@sha256:... --build-arg VERSION=... .
#
# KubeRay starts containers with `/bin/bash -c`: PYTHON has to have bash. S3 comes with it.
ARG PYTHON
ARG CUDA=${PYTHON}

FROM ${PYTHON} AS build
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY model /source/model
COPY orchestrator /source/orchestrator
COPY k8s/images/install.sh /source/k8s/images/install.sh
RUN /source/k8s/images/install.sh train,pods,s3 /opt/fathom

FROM ${CUDA} AS engine
ARG VERSION
COPY --from=build /opt/fathom /opt/fathom
RUN test -n "$VERSION" || { echo "name the version of Transformer Engine: --build-arg VERSION=..." >&2; exit 1; }; \
    PYTHONPATH=/opt/fathom NVTE_FRAMEWORK=pytorch python3 -m pip install --no-cache-dir --no-build-isolation --no-deps \
      --target /opt/engine "transformer-engine[pytorch]==$VERSION" "transformer-engine-cu13==$VERSION" \
      "transformer-engine-torch==$VERSION" nvidia-ml-py

FROM ${PYTHON} AS cpu
RUN ["/bin/bash", "-c", "true"]
COPY --from=build /opt/fathom /opt/fathom
ENV PYTHONPATH=/opt/fathom PATH=/opt/fathom/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 1000:1000
WORKDIR /tmp

FROM cpu AS gpu
COPY --from=engine /opt/engine /opt/engine
ENV PYTHONPATH=/opt/fathom:/opt/engine
