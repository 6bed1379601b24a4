# make sweep   the main job: a learning-rate sweep over widths, on real images, with a verdict
# make test    the tests that are not marked slow (no Ray, MLflow server, browser, fault bench or long training): minutes
# make check   format, lint, types and all tests: what CI runs
# make bench   the benchmarks      make models  the coordinate checks of docs/models.md
# make faults  hurts sweeps in every known way (an hour; FULL=1 goes on by seed): the table of docs/reliability.md
# make load      a ledger of 20,000 trials, 64 reporters at once: the other table of docs/reliability.md
# make evidence  calibration, proxy size and evidence: the tables of docs/ again from docs/data
# make install the environment and the command, .venv/bin/muxfer
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: install browser sweep test check format bench models faults load evidence clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

# A test opens the report in chromium. Where apt is there it must run; root gets it here, others are told how.
browser:
	@command -v chromium > /dev/null || ! command -v apt-get > /dev/null || if [ "$$(id -u)" = 0 ]; \
	then apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core > /dev/null; \
	else echo "no chromium for tests/report/test_browser.py: sudo apt-get install chromium fonts-dejavu-core"; fi

# Tests of one file share its fixtures, so a file stays in one of the two lanes.
PYTEST := $(BIN)/python -m pytest
LANES := --numprocesses 2 --dist loadfile

check: export MUXFER_REQUIRE_BROWSER := $(if $(shell command -v apt-get),1,0)

sweep: install
	$(BIN)/muxfer sweep lr-width

test: install
	$(PYTEST) -m "not slow" --durations 12 $(LANES)

check: install browser
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" --durations 12 $(LANES)
	$(PYTEST) -m "slow and not alone" --durations 12 $(LANES)
	$(PYTEST) -m alone --durations 12

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

models: install
	$(BIN)/muxfer check dit output_dir=dist/check
	cp dist/check/check-dit/mup-width.png docs/img/coordinate-check.png
	$(BIN)/python -m benchmarks.coordinates

faults: install
	$(BIN)/python -m benchmarks.faults $(if $(FULL),--full)

load: install
	$(BIN)/python -m benchmarks.load

evidence: install
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.proxy_size
	$(BIN)/python -m benchmarks.evidence

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
