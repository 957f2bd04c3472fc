# Two commands: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-cluster e2e lint format docs trust bench mlflow clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP) ## Make the environment in .venv from the constraints

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "fathom needs Python 3.11 or newer, but $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 ..." % v[:2])'
	@echo "making $(VENV) (once; the packages take about 6 GB)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[train,dev]' \
	  || $(BIN)/python -m pip install -q -c constraints.txt -e '.[train,dev]' # knows indexes that uv does not
	@touch $@

STDLIB = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

demo: $(STAMP) ## Start the service, train a sparse and a dense model on real text, compare them; in minutes
	@$(BIN)/fathom data prepare "$(STDLIB)" runs/demo-data --vocab-size 4096 --heldout-share 0.03 --force \
	  --license PSF-2.0 --provenance "standard library of the running Python" --include '*.py' \
	  --exclude 'site-packages/*' --exclude 'test/*' --exclude '*/test/*' --exclude '*/tests/*' \
	  --exclude 'idlelib/*' --exclude 'lib2to3/*'
	@$(BIN)/fathom demo k8s/samples/demo-sparse.yaml k8s/samples/demo-dense.yaml

FLAKES := .pytest_cache/flakes.txt

# To read all other files takes each of pytest's processes ten seconds of a core. tests/support/order.py sees to it that
# none is forgotten.
SLOW := grep -rlE --include='test_*.py' 'mark\.(processes|ray)\b' tests
# The tests start hundreds of processes, which would compile what they import each time where nothing may be kept.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

test: $(STAMP) ## Run all tests, the quick ones first
	@mkdir -p $(dir $(FLAKES)) && rm -f $(FLAKES)
	@$(PYTEST) -q -m "not processes and not ray and not cluster" -n 3 --dist loadfile \
	  --no-loadscope-reorder --durations=15 --second-go=$(FLAKES)
	@$(PYTEST) -q -m "processes or ray" $$($(SLOW)) -n 3 --dist loadfile \
	  --no-loadscope-reorder --durations=15 --second-go=$(FLAKES)
	@test ! -e $(FLAKES) || { echo; cat $(FLAKES); }

test-cluster: $(STAMP) ## Start a whole Kubernetes and test what only that shows; root and CLUSTER="--without-node": docs/test-cluster.md
	@OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m live.testcluster $(CLUSTER)

e2e: $(STAMP) ## Install on the cluster of KUBECONFIG, train there and break things; E2E="--train-image ... --controller-image ..."
	@PYTHONPATH=.:tests $(BIN)/python -m live.e2e $(E2E)

lint: $(STAMP) ## Check style, types and import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

format: $(STAMP) ## Put the code into its usual form
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(STAMP) ## Write docs/job.md, docs/reasons.md, k8s/crds and values of the chart from the models
	@for name in job reasons; do $(BIN)/python -m orchestrator.reference $$name > docs/$$name.md; done
	@$(BIN)/python -m orchestrator.crd > k8s/crds/trainingjobs.fathom.dev.yaml
	@for name in values.yaml values.schema.json README.md templates/crd.yaml; do \
	  $(BIN)/python -m orchestrator.chart $$name > helm/fathom/$$name; done

trust: $(STAMP) ## Write the tables of docs/engine.md from real runs, killed and compared (half an hour)
	@$(BIN)/python -W ignore benchmarks/trust.py

bench: $(STAMP) ## Measure a training step against transformers, memory by part; with WEIGHTS= and PROMPTS= decoding too
	@mkdir -p runs/bench
	@$(BIN)/python -W ignore benchmarks/train_step.py --shape mini wide --json runs/bench/train_step.json
	@$(BIN)/python -W ignore benchmarks/memory.py --json runs/bench/memory.json
ifdef WEIGHTS
	@$(BIN)/python -W ignore benchmarks/decode.py "$(WEIGHTS)" --prompts "$(PROMPTS)" --output runs/bench/decode.json
endif

mlflow: $(STAMP) ## Open MLflow on the runs of this folder (http://127.0.0.1:5000), safely
	@$(BIN)/fathom mlflow

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
