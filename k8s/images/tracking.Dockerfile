# MLflow's server, at the version that Fathom is tested with. In the root of the repository:
#
#   docker build -f k8s/images/tracking.Dockerfile -t REGISTRY/fathom-tracking \
#     --build-arg PYTHON=python:3.11-slim-bookworm@sha256:... .
ARG PYTHON

FROM ${PYTHON} AS build
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY model /source/model
COPY orchestrator /source/orchestrator
COPY k8s/images/install.sh /source/k8s/images/install.sh
RUN /source/k8s/images/install.sh tracking /opt/fathom

FROM ${PYTHON}
COPY --from=build /opt/fathom /opt/fathom
ENV PYTHONPATH=/opt/fathom PATH=/opt/fathom/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
WORKDIR /tmp
CMD ["python3", "-m", "mlflow", "server", "--help"]
