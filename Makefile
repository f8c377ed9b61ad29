# make demo   the main job: fine-tune a teacher, distil it in four stages, report (out/report.md)
# make test   all tests, those of the loss ops a second time with the Triton kernels, interpreted
# make lint   formatting, lint, types
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint

demo: $(INSTALLED)
	$(VENV)/bin/python -m recipes.quickstart --output_dir out --resume

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal tests/kernels --ignore tests/kernels/test_compiled.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# installs once, and again only when what is to be installed has changed
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $(INSTALLED)
