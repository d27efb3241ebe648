# The commands of the project; `make help` lists them. Everything is installed into .venv in this checkout.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SHELLS := $(wildcard scripts/*.sh)

.DEFAULT_GOAL := help
.PHONY: help docs demo doctor setup setup-dev serve test test-long chaos load fuzz-api fuzz-media lint audit bench record-release constraints

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## portrait + speech -> talking video, through the HTTP API, on this machine's CPU
	@$(PY) scripts/demo.py

doctor: setup ## what can run on this machine, and why the rest cannot
	@$(PY) scripts/doctor.py

setup: $(VENV)/installed ## install what the service needs

setup-dev: $(VENV)/installed-dev

serve: setup ## the service in the foreground, http://127.0.0.1:5000 (AVATAR_HOST, AVATAR_PORT, WEB_CONCURRENCY)
	@exec $(VENV)/bin/gunicorn -c configs/gunicorn.conf.py 'app:create_app()'

test: setup-dev ## all tests
	@scripts/test.sh

test-long: setup-dev ## the tests and variants that `make test` leaves out to stay under ten minutes
	@$(PY) -m pytest -q -m long

load: setup-dev ## 200 tasks and 20 previews at once through four web workers (the tests try fewer)
	@AVATAR_TEST_LOAD=220 $(PY) -m pytest -q -s tests/e2e/test_load.py -k many_tasks

chaos: setup-dev ## random kills of every process of a service over a mixed load (SEED=, KILLS=200)
	@$(PY) -m tests.chaos

fuzz-api: setup-dev ## generated requests to a service with authentication on, all checks (SEED=, FUZZ_SECONDS=300)
	@$(PY) -m tests.fuzz api

fuzz-media: setup-dev ## mutated pictures and recordings, uploaded to a service (SEED=, COUNT=10000)
	@$(PY) -m tests.fuzz media

lint: setup-dev ## ruff, mypy, shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck $(SHELLS) .ci/run

audit: setup-dev ## known holes in the pinned packages (needs the network), and ruff's rules, those on security too
	$(VENV)/bin/ruff check .
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

docs: setup ## write anew what of the documents follows from the code (settings, alerts, in Chinese too; the life cycle)
	@$(PY) scripts/docs.py

bench: setup-dev ## speed of the preview engine, and of encoding the same frames alone
	$(PY) -m engines.preview.bench

record-release: setup-dev ## write down what a runner of this release says to its database, for the next one's tests
	@$(PY) -m tests.tasks.record_release

constraints: setup-dev ## pin anew what requirements-dev.txt brings along
	@{ sed '/^[^#]/d' constraints.txt; $(PY) -m pip freeze --exclude-editable; } > constraints.new && mv constraints.new constraints.txt

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=... names one)"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo "python3 cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }

$(VENV)/installed: requirements.txt constraints.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

# In one go with what the service needs, which is most of it: each run of pip costs seconds.
$(VENV)/installed-dev: requirements.txt requirements-dev.txt constraints.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV), with the test tools ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $(VENV)/installed $@
