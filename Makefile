# Two commands from a fresh clone: `make demo` and `make test`.
# Both need python3 (3.11 or newer), make and git, and put everything else into .venv or provide it.

BIN := .venv/bin
LOCKED := requirements.lock pyproject.toml setup.cfg

.NOTPARALLEL:
.PHONY: demo test check docs measure bench stress models lock clean

demo: .venv/.runtime ## chat with your own key; prints the address
	$(BIN)/python -m flask_byok.demo

test: ## every check and the whole test suite, with real services
	scripts/provide
	$(MAKE) check
	scripts/test
	scripts/lowest

check: .venv/.dev ## what can be told without running the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/models.py check
	$(MAKE) docs

docs: .venv/.dev ## into docs/_build/html
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

measure: .venv/.dev ## size, imports and hops of the package, beside the aims
	$(BIN)/python -m tests.measure

bench: .venv/.dev ## measured ratios against the raw parts and a naive version
	$(BIN)/python -m tests.bench

stress: ## the long trials, one after the other, each with its time
	scripts/provide
	$(MAKE) .venv/.dev
	scripts/lowest sdks
	scripts/test -m stress -v -o console_output_style=times -o faulthandler_timeout=0
	scripts/lowest tests/http/test_hostile_urls.py -m 'stress or not stress'
	scripts/lowest hosts
	scripts/lowest all

models: .venv/.dev ## take the newest facts about models
	$(BIN)/python scripts/models.py renew

lock: ## choose new versions of everything
	scripts/lock

clean:
	rm -rf .venv .venv-lowest* .venv-sdks* .venv-peers .venv-frameworks build dist *.egg-info docs/_build
	rm -rf tests/axe/node_modules tests/peers/node/node_modules
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.venv/.runtime: $(LOCKED)
	scripts/venv runtime

.venv/.dev: $(LOCKED)
	scripts/venv dev
