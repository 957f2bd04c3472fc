# The controller: no torch, no Ray, no MLflow server. In the root of the repository:
#
#   docker build -f k8s/images/controller.Dockerfile -t REGISTRY/fathom-controller \
#     --build-arg PYTHON=python:3.11-slim-bookworm@sha256:... --build-arg RUNTIME=gcr.io/distroless/python3-debian12@sha256:... .
#
# PYTHON builds and has pip; RUNTIME runs, and has the same Python (3.11) and C library: PYTHON again, or one without a
# shell. Both are named by digest, and by you: whoever ships an image says what it stands on.
ARG PYTHON
ARG RUNTIME

FROM ${PYTHON} AS build
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY model /source/model
COPY orchestrator /source/orchestrator
COPY k8s/images/install.sh /source/k8s/images/install.sh
RUN /source/k8s/images/install.sh controller /opt/fathom

FROM ${RUNTIME}
COPY --from=build /opt/fathom /opt/fathom
# The root is read-only: nothing is compiled into it, and what is written goes to /tmp and to volumes.
ENV PYTHONPATH=/opt/fathom PATH=/opt/fathom/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT []
CMD ["python3", "-m", "orchestrator.cli", "controller", "--help"]
