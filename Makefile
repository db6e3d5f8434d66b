# make demo | test | check | env | clean
.DEFAULT_GOAL := help
SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
# Two workers suit two cores; torch's own threads would fight with them (tests/conftest.py sets one each).
TEST_ARGS ?= -n 2 --dist loadfile

.PHONY: help env demo test check clean

help:
	@echo "make demo   compress the demonstration model and write runs/demo/report.html"
	@echo "make test   run every test"
	@echo "make check  ruff, format, mypy, import direction"
	@echo "make env    create $(VENV) (the others do so by themselves)"
	@echo "make clean  remove $(VENV), caches and runs/demo"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/make_env.sh
	@scripts/make_env.sh $(VENV)
	@touch $@

# A finished demo is done again from the start; one that was interrupted goes on where it was.
demo: $(STAMP)
	@if [ -e runs/demo/report.json ]; then rm -rf runs/demo; fi
	@if [ -e runs/demo/config.yaml ]; then $(BIN)/cascade compress --resume runs/demo; \
	 else $(BIN)/cascade compress --out runs/demo; fi
	@echo "Open $(CURDIR)/runs/demo/report.html"

test: $(STAMP)
	@$(BIN)/python -m pytest $(TEST_ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:xdist tests/contracts/test_import_direction.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
