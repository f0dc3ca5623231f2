# `make run` and `make test` need nothing but Python 3.11 or newer: each first makes .venv with the pinned versions.
# make run ARGS="--port 9000"     make test ARGS="tests/storage -x"     make test PYTHON=/opt/bin/python3.12

SHELL := bash
.DELETE_ON_ERROR:

PYTHON ?= python3.13 python3.12 python3.11 python3
VENV := .venv
STRICT := .venv-strict

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Both names: from 25.3 on pip reads the second for what it installs to build a package.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: run test lint format bench constraints clean

run: $(VENV)/.run
	@exec $(VENV)/bin/homeport serve $(ARGS)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n auto $(ARGS)

# mypy reads a strict editable install, which holds exactly what a wheel would: a sub-package that pyproject.toml
# forgets is an error here. It links the files that there are, so it is renewed each time; .venv is an ordinary
# editable install, where a new module is simply there.
lint: $(VENV)/.test $(STRICT)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(STRICT)/bin/pip install -q --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	@set -o pipefail; $(STRICT)/bin/mypy -p homeport | sed 's|^build/__editable__[^/]*/homeport/||'
	$(STRICT)/bin/mypy tests bench

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.test
	$(VENV)/bin/python -m bench $(ARGS)

# The newest versions that the oldest Python can have: a later Python can have them too.
constraints: PYTHON := python3.11
constraints: export PIP_CONSTRAINT :=
constraints: export PIP_BUILD_CONSTRAINT :=
constraints:
	rm -rf build/constraints
	@$(call make_venv,build/constraints)
	build/constraints/bin/pip install -q '.[dev]'
	{ echo '# Made by `make constraints`: the pinned versions, to run and to develop, on Python 3.11 to 3.13.'; \
	  build/constraints/bin/pip freeze --all --exclude homeport --exclude pip; } > constraints.txt

clean:
	rm -rf $(VENV) $(STRICT) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run: EXTRA :=
$(VENV)/.test $(STRICT)/.test: EXTRA := [dev]
$(VENV)/.run $(VENV)/.test $(STRICT)/.test: pyproject.toml constraints.txt
	@[ -x $(@D)/bin/pip ] || { $(call make_venv,$(@D)); }
	$(@D)/bin/pip install -q -e '.$(EXTRA)'
	@touch $@

# Takes the first of PYTHON that can make a virtual environment; a name may be there and not run (a pyenv shim).
define make_venv
for python in $(PYTHON); do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "making $(1) with $$($$python --version)"; exec $$python -m venv --clear $(1); \
	fi; \
done; \
echo "homeport needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv);" \
	"none of these is one: $(PYTHON). Another: make PYTHON=/path/to/python3" >&2; exit 1
endef
