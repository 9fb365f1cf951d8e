# `make demo` watches a tiny model learn when to think, or goes on where it was interrupted;
# `make test` runs the tests; `make lint` checks style and types; `make bench` measures speed and
# memory, with the model that `make demo` left, beside transformers and TRL where they are installed.
# All make .venv on a fresh machine. PYTHON=python3.12 chooses another interpreter (3.10 or newer).
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check -q
SOURCES = model.py sample.py lhrm.py hgpo.py data

.PHONY: demo test lint bench

demo: .venv/installed
	.venv/bin/python hgpo.py --resume_from_checkpoint

test: .venv/installed
	.venv/bin/python -m pytest -q

bench: .venv/installed
	.venv/bin/python tests/bench.py

lint: .venv/linters
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(SOURCES)

# The requirements that are missing, and nothing else: an install that is there is left alone.
.venv/installed: requirements.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install -r requirements.txt
	touch .venv/installed

# The dev group of pyproject.toml; pip knows groups from 25.1 on.
.venv/linters: pyproject.toml .venv/installed
	$(PIP) install 'pip>=25.1'
	$(PIP) install --group dev
	touch .venv/linters
