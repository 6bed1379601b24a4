# make sweep   the main job: a learning-rate sweep over widths, on real images, with a verdict
# make test    the tests           make check   format, lint, types and tests: what CI runs
# make bench   the benchmarks      make models  the coordinate checks of docs/models.md
# make install the environment and the command, .venv/bin/muxfer
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: install sweep test check format bench models clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

sweep: install
	$(BIN)/muxfer sweep lr-width

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

models: install
	$(BIN)/muxfer check dit output_dir=dist/check
	cp dist/check/check-dit/mup-width.png docs/img/coordinate-check.png
	$(BIN)/python -m benchmarks.coordinates

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
