# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PRETTIER := $(VENV)/npm/node_modules/.bin/prettier --log-level warn --print-width 110 --use-tabs
PAGE := dpipectl/http/static/*.js dpipectl/http/static/*.css
SOURCES := $(shell find dpiped dpipectl -name '*.py') $(wildcard dpipectl/http/static/*)

.PHONY: demo test together check format bench quality faults fuzz soak docs clean

demo: $(VENV)/.project
	$(BIN)/python -m tools.demo

# Those that measure come last, with the machine to themselves. Only their files are read again.
test: check together
	$(BIN)/python -m pytest -m alone $$(grep -l 'pytest.mark.alone' tests/test_*.py)

# Most tests wait more than they compute, so four at a time on two cores, in the order of tests/conftest.py.
together: $(VENV)/.project $(VENV)/.browser
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not alone'

check: $(VENV)/.project $(VENV)/.browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if [ -x $(firstword $(PRETTIER)) ]; then $(PRETTIER) --check $(PAGE); fi
	$(BIN)/mypy

# After a change of the page.
format: $(VENV)/.browser
	$(PRETTIER) --write $(PAGE)

bench: $(VENV)/.project
	$(BIN)/python -m tools.bench

quality: $(VENV)/.project
	$(BIN)/python -m tools.quality

# The tests that docs/faults.md names, FAULT_ROUNDS times in a row.
FAULT_ROUNDS := 3
faults: $(VENV)/.project
	for round in $$(seq $(FAULT_ROUNDS)); do \
		$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m 'not alone' \
			-k "$$(grep -oE '`test_[a-z_]+`' docs/faults.md | tr -d '`' | sort -u | paste -sd '|' | sed 's/|/ or /g')" || exit; \
	done

# Of the parsers, FUZZ_SECONDS in all (ten minutes). What atheris is, only this needs.
FUZZ_SECONDS := 600
fuzz: $(VENV)/.project
	$(BIN)/pip install --quiet -c constraints.txt "$$($(BIN)/python -c '$(FUZZ_NEEDS)')"
	$(BIN)/python -m tools.fuzz --seconds $(FUZZ_SECONDS)

# Half an hour of runs that end in every way; docs/soak.md.
SOAK_MINUTES ?= 30
SOAK_RUNS ?= 200
soak: $(VENV)/.project
	$(BIN)/python -m tools.soak --minutes $(SOAK_MINUTES) --runs $(SOAK_RUNS) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

docs: $(VENV)/.project
	$(BIN)/python docs/generate_protocol.py

clean:
	rm -rf $(VENV) .demo .quality .fuzz build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .screenshots

# What the project needs, once; the constraints keep torch to a known build. The pip that comes with Python 3.11
# takes twice as long. Compiling is left to all cores, without a third of it that nobody imports; some packages
# ship files of other Pythons, which can't be compiled.
NEEDS := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	more = p["optional-dependencies"]; del more["fuzz"]; \
	print(*p["dependencies"], *sum(more.values(), []), sep="\n")
FUZZ_NEEDS := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(p["optional-dependencies"]["fuzz"][0])
$(VENV)/.needs: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("dpiped needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(NEEDS)' > $(VENV)/needs.txt
	$(BIN)/pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/pip install --quiet --no-compile --upgrade -c constraints.txt -r $(VENV)/needs.txt
	$(BIN)/python -m compileall -qq -j 0 -x transformers/models/ $(VENV)/lib || true
	touch $@

# A browser for the tests of the page.
$(VENV)/.browser: tools/browser.sh tests/npm/package-lock.json
	tools/browser.sh

# The project itself, as a user gets it, whenever a source file has changed. (An editable install would
# slow down every start of dpipectl by the finder that it adds.)
$(VENV)/.project: $(VENV)/.needs $(SOURCES)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@
