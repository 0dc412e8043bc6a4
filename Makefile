# `make run` and `make test` do all set-up. Needs Python 3.11 to 3.13, git and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

DIGITS := -S data.path=data/raw/digits.npz
BAR := ==============================================================================

.PHONY: setup run test reproduce study docs lint lock
setup: $(READY)

# The .pth line puts the environment's programs first on the PATH of whatever it starts, so that `.venv/bin/dvc repro`
# runs the stages with its own python, activated or not.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit( \
	  f"make: $(PYTHON) is Python {v[0]}.{v[1]}, expected 3.11 to 3.13; try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "installing the locked packages, 1 to 2 minutes, 2.6 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@echo 'import os, sys; os.environ["PATH"] = os.path.join(sys.prefix, "bin") + os.pathsep + os.environ.get("PATH", "")' \
	  > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/programs_first.pth
	@touch $(READY)

# Exit code 3 of stages.datasets: CIFAR-10 cannot be had.
run: $(READY)
	@$(BIN)/python -m stages.datasets; status=$$?; \
	if [ $$status -eq 0 ]; then \
	  $(BIN)/dvc repro || exit; \
	elif [ $$status -eq 3 ]; then \
	  echo; echo "$(BAR)"; \
	  echo "CIFAR-10 CANNOT BE HAD (see above). Running the same pipeline on the BUILT-IN DIGITS:"; \
	  echo "dvc exp run $(DIGITS)"; \
	  echo "$(BAR)"; echo; \
	  $(BIN)/dvc exp run $(DIGITS) || exit; \
	  echo; echo "These are the digits. To try CIFAR-10 again: git checkout params.yaml && make run"; \
	else \
	  exit $$status; \
	fi; \
	echo; echo "Read reports/report.md. Keep it, to compare with: git add dvc.lock params.yaml reports && git commit"

test: $(READY)
	$(BIN)/python -m pytest

reproduce: $(READY)
	@$(BIN)/python benchmarks/reproduce.py

PLAN ?= studies/digits.yaml
study: $(READY)
	@$(BIN)/python -m studies $(PLAN)

docs: $(READY)
	$(BIN)/python docs/make_settings.py

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Needs uv: https://docs.astral.sh/uv/
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --no-emit-index-url \
	  --custom-compile-command "make lock" --quiet --output-file requirements.txt pyproject.toml
