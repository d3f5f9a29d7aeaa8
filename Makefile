PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-all smoke lint clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/ready
	$(BIN)/python launch.py --config=configs/word_problems.py --workdir=runs/demo

smoke: .venv/ready
	$(BIN)/python launch.py --config=configs/smoke.py --workdir=runs/smoke

test: .venv/ready
	$(BIN)/python -m pytest

test-all: .venv/ready
	$(BIN)/python -m pytest -m ""

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis
