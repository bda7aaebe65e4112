# make test | test-fast | demo | demo-seg | demo-cls | lint | docs. The first call makes .venv; `PYTHON=python3.11` chooses from what.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
READY := $(VENV)/.ready
# Images of containers set it, and then each of the many processes compiles all packages anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test test-fast demo demo-seg demo-cls lint docs

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-fast: $(READY)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m 'not (slow or export or dist)' $(PYTEST_ARGS)

demo: $(READY)
	$(VENV)/bin/python tools/demo.py detection $(DEMO_ARGS)

demo-seg: $(READY)
	$(VENV)/bin/python tools/demo.py segmentation $(DEMO_ARGS)

demo-cls: $(READY)
	$(VENV)/bin/python tools/demo.py classification $(DEMO_ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python tools/dev/check_metafiles.py

docs: $(READY)
	$(VENV)/bin/python tools/dev/operators_table.py
	$(VENV)/bin/python tools/dev/versions_table.py
	$(VENV)/bin/python tools/dev/results_tables.py
	$(VENV)/bin/python -m sphinx -W --keep-going -q -c docs . site
	@echo 'open site/index.html'

$(READY): setup.py pyproject.toml requirements/pins.txt tools/dev/setup_env.sh
	@PYTHON='$(PYTHON)' bash tools/dev/setup_env.sh '$(VENV)'
