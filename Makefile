# `make demo` watches a tiny model learn when to think, or goes on where it was interrupted;
# `make test` runs the tests.
# Both make .venv on a fresh machine. PYTHON=python3.12 chooses another interpreter (3.10 or newer).
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check -q

.PHONY: demo test

demo: .venv/installed
	.venv/bin/python hgpo.py --resume_from_checkpoint

test: .venv/installed
	.venv/bin/python -m pytest -q

# The requirements that are missing, and nothing else: an install that is there is left alone.
.venv/installed: requirements.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install -r requirements.txt
	touch .venv/installed
