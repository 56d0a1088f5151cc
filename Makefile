# What a user and CI need: make demo, make test. Everything else is a part of these.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# make test KERNEL=0 leaves out the tests that boot guests (they need QEMU and, to install it, root).
KERNEL ?=

.PHONY: $(shell grep -oE '^[a-z0-9-]+:' $(firstword $(MAKEFILE_LIST)) | tr -d :)

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 1; }
	@echo "installing the pinned Python packages into $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: $(STAMP) ## migrate four simulated devices between two nodes; KERNEL=1: two mtty devices between two guests; KEEP=1: leave it running
	@$(BIN)/python hack/demo.py $(if $(filter 1,$(KERNEL)),--kernel) $(if $(filter 1,$(KEEP)),--keep)

test: lint $(STAMP) ## everything: lint, pure, fakes, loopback, cluster, kernel
	@$(BIN)/pytest tests/pure tests/fakes tests/loopback tests/cluster $(if $(filter 0,$(KERNEL)),,tests/kernel)

test-fast: $(STAMP) ## no control plane, no guest; under 60 s
	@$(BIN)/pytest tests/pure tests/fakes tests/loopback

test-cluster: $(STAMP) ## on the real control plane, with simulated devices
	@$(BIN)/pytest tests/cluster

test-kernel: $(STAMP) ## in QEMU guests, with the kernel's mtty devices
	@$(BIN)/pytest tests/kernel

model: $(STAMP) ## the safety protocol explored within bounds that are printed, and broken on purpose (3 minutes)
	@PYTHONPATH=tests $(BIN)/python -m pure.model

faults: $(STAMP) ## the whole fault matrix on real processes; report in build/ (about 8 minutes)
	@PYTHONPATH=hack $(BIN)/python hack/faults.py

bench: $(STAMP) ## every bar with its figure, beside QEMU, iperf3, openssl, kopf (two hours; ONLY="overhead qemu": some; SOAK=300: seconds)
	@PYTHONPATH=hack:bench:tests ONLY="$(ONLY)" SOAK_SECONDS=$(or $(SOAK),3600) $(BIN)/python bench/all.py

bench-convergence: $(STAMP) ## which states converge, predicted against actual downtime, memory (about 15 minutes)
	@PYTHONPATH=hack:bench $(BIN)/python bench/convergence.py

bench-size: $(STAMP) ## one pair against 256: the decision, the status, the downtime
	@PYTHONPATH=hack $(BIN)/python bench/size.py

fuzz: $(STAMP) ## a million randomized inputs for every parser and both ends of every channel (about 5 minutes)
	@$(BIN)/python hack/fuzz.py

images: $(STAMP) ## the images of operator and agent as OCI archives in dist/, without a container engine
	@$(BIN)/python hack/images.py

e2e: $(STAMP) ## the chart installed on real kubelets: nodes on this machine (as root), then guests with real VFIO devices
	@PYTHONPATH=hack $(BIN)/python hack/end_to_end.py

lint: $(STAMP) ## ruff, mypy strict, import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@PYTHONPATH=api:operator:agent:cli $(BIN)/lint-imports --no-cache | tail -n 3

format: $(STAMP) ## let ruff format and fix
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

generate: $(STAMP) ## stubs from the proto, CRDs from the models, docs from the tables
	@$(BIN)/python -m grpc_tools.protoc -Iapi --python_out=api --pyi_out=api --grpc_python_out=api \
	  api/vfio_api/v1/agent.proto
	@$(BIN)/python -m vfio_api.crd crds
	@$(BIN)/python hack/draw_states.py
	@$(BIN)/python hack/draw_reference.py
	@$(BIN)/python hack/draw_metrics.py
	@PYTHONPATH=hack $(BIN)/python hack/draw_pictures.py
	@$(BIN)/python hack/draw_dashboards.py
	@PYTHONPATH=hack $(BIN)/python hack/draw_chart_readme.py

sequences: $(STAMP) ## docs/sequences.md, drawn from real runs
	@PYTHONPATH=hack $(BIN)/python hack/draw_sequence.py

panels: $(STAMP) ## docs/screens/*.png and the table of docs/observability.md, from a real run and a real Prometheus (a minute)
	@VFIO_SCREENS=docs/screens VFIO_TABLE=docs/screens/panels.md $(BIN)/pytest -q tests/cluster/test_panels.py

traces: $(STAMP) ## the trace in docs/tracing.md, of a real run
	@PYTHONPATH=hack $(BIN)/python hack/draw_trace.py

screens: $(STAMP) ## docs/screens.md: the plugin's output on a terminal, recorded from a real run
	@$(BIN)/python hack/draw_screens.py

docs: $(STAMP) ## the documentation as a site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo build/site/index.html

lock: $(STAMP) ## pin requirements/*.in anew, with hashes and without index URLs
	@$(BIN)/python -m pip install --quiet pip-tools
	@for name in dev operator agent build; do \
	  $(BIN)/pip-compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-trusted-host \
	    --no-emit-find-links --strip-extras --allow-unsafe --no-header --no-annotate \
	    -o requirements/$$name.txt requirements/$$name.in; done

clean: ## the virtual environment and caches of this checkout
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
