# Every target sets up what it needs: the first command a newcomer types works.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
WITH_TOOLS := .venv/.installed-tools
WITH_DOCS := .venv/.installed-docs
WITH_AUDIT := .venv/.installed-audit
# A file's tests stay together. Of the slow ones many wait for a process, so there are more at once than cores.
BY_FILE := --dist loadfile --no-loadscope-reorder
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train sweep report test test-fast lint types imports format docs audit sbom benchmark clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo '  Overrides go into ARGS:  make train ARGS="loss=triplet trainer.max_epochs=2"'

setup: $(WITH_TOOLS) ## Make .venv and install the package with its development tools.

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unseen needs Python 3.11 or newer, found " + sys.version.split()[0] + ". Name one: make PYTHON=/path/to/python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv (once, a few minutes) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(WITH_TOOLS): $(INSTALLED)
	@echo 'Installing development tools into .venv (once, a few minutes) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

train: $(INSTALLED) ## Train and evaluate; on the embedded glyphs unless ARGS says otherwise.
	@$(BIN)/python -m unseen train $(ARGS)

sweep: $(INSTALLED) ## Train the method's 2×2 over three seeds on glyphs; the same again goes on.
	@$(BIN)/python -m unseen sweep sweep=ablation launcher=joblib trainer.max_epochs=3 pictures=false \
		evaluation.probe_classes=0 $(ARGS)

report: $(INSTALLED) ## Compare finished runs: tables and a page in runs/report.
	@$(BIN)/python -m unseen report $(ARGS)

test: setup ## Run the whole test suite.
	@$(BIN)/python -m pytest -n 4 $(BY_FILE) $(ARGS)

test-fast: setup ## Run the tests that take seconds.
	@$(BIN)/python -m pytest -n 2 $(BY_FILE) -m "not slow" $(ARGS)

lint: setup ## Check style and formatting.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## Check the type hints.
	@$(BIN)/mypy

imports: setup ## Check that rooms import only from rooms below them.
	@$(BIN)/lint-imports

format: setup ## Format the code and mend what the linter can.
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(WITH_DOCS): $(WITH_TOOLS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(WITH_DOCS) ## Build the site into site/, warnings as errors.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo 'Built: site/index.html'

$(WITH_AUDIT): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	@touch $@

audit: $(WITH_AUDIT) ## Look for known vulnerabilities of what is installed (needs a connection).
	@$(BIN)/pip-audit --local --skip-editable --progress-spinner off

sbom: $(WITH_AUDIT) ## List what is installed in sbom.json (CycloneDX).
	@$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-file sbom.json
	@echo 'Written: sbom.json'

benchmark: setup ## Print the speed tables against peers (minutes; wants an idle machine).
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[benchmark]'
	@for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## Remove the environment and tool caches; runs and data stay.
	@rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache build dist site sbom.json
