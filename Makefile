PYTHON ?= python3
BIN = .venv/bin
TRANSFORMERS ?= transformers

.PHONY: demo test test-all parity smoke lint clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/ready
	$(BIN)/python launch.py --config=configs/word_problems.py --workdir=runs/demo

smoke: .venv/ready
	$(BIN)/python launch.py --config=configs/smoke.py --workdir=runs/smoke

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

# A Python environment of its own; for transformers 4: make parity TRANSFORMERS="transformers<5"
parity:
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet -r requirements.txt torch "$(TRANSFORMERS)"
	.venv-parity/bin/python -m pytest tests/models/test_hf_parity.py

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-parity .pytest_cache .ruff_cache .hypothesis
