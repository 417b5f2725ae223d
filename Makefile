# Each target does its own set-up: a virtual environment, installed from the lock. Type any of them first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test test-fast lint lock up down clean

run: $(STAMP)  ## the main job: from raw data to a promoted generator
	$(BIN)/tessera run quickstart --scale tiny

# Two files at a time, each with one thread: threads of two processes would wait for each other.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(STAMP) browser lint  ## everything: two files at a time, and the browser alone at the end
	$(SIDE_BY_SIDE) -m "not browser"
	$(BIN)/python -m pytest -m browser

test-fast: $(STAMP) lint  ## what answers in two minutes
	$(SIDE_BY_SIDE) -m "not slow and not browser"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

up down: $(STAMP)
	$(BIN)/tessera $@

$(STAMP): requirements/cpu.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The interface tests drive Debian's Chromium; where it cannot be installed they are skipped with that reason.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null); } || \
	  echo "chromium is not installed: the tests of the user interface will be skipped (apt install chromium)"

lock: $(STAMP)  ## write the exact lock from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/^torch==\([0-9.]*\)+cpu$$/torch==\1/' > requirements/cpu.txt

clean:
	rm -rf $(VENV) build *.egg-info
