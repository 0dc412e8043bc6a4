# Each command sets up what it needs the first time. Needs Python 3.11 to 3.13, git and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PTH := import os, sys; os.environ["PATH"] = os.path.join(sys.prefix, "bin") + os.pathsep + os.environ.get("PATH", "")
UTF8 := import configobj; configobj.ConfigObj.default_encoding = property(lambda _: "utf-8", lambda *_: None)

.PHONY: setup run check test prove docs study experiments committed-run export demo reproduce lock
setup: $(READY)

# PTH puts the environment's programs first on the PATH of whatever it starts, so that `.venv/bin/dvc repro`
# runs the stages with its own python, activated or not. UTF8: DVC writes its settings as ASCII, so `dvc exp run --temp`
# would fail below a folder such as /home/José.
#
# setuptools first, from the lock: a package that comes as source is built with it, not with one that pip looks up.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit( \
	  f"make: $(PYTHON) is Python {v[0]}.{v[1]}, expected 3.11 to 3.13; try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "installing the locked packages: 1 to 2 minutes, 2.7 GB"
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.txt > .venv/build.txt
	$(PIP) --require-hashes -r .venv/build.txt
	$(PIP) --no-build-isolation --require-hashes -r requirements.txt
	$(PIP) --no-build-isolation --no-deps --editable .
	@printf '%s\n' '$(PTH)' '$(UTF8)' > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/programs_first.pth
	$(BIN)/python -m tools.plots_page
	@touch $(READY)

CIFAR10 := data/raw/cifar10.yaml
MNIST := data/raw/mnist.npz
define ON_MNIST

===============================================================================
Images: the built-in MNIST ($(MNIST)), NOT CIFAR-10.
params.yaml names them, so every run uses them until you run on CIFAR-10 with:
  $(BIN)/dvc exp run -S data.path=$(CIFAR10)
===============================================================================

endef
export ON_MNIST

# stages.images fetches the images that params.yaml names, and exits with 3 if they cannot be downloaded. `dvc exp run`
# fails without a committer's name.
run: $(READY)
	@who=; git config user.name >/dev/null && git config user.email >/dev/null || { who=unknown; \
	  export GIT_COMMITTER_NAME=make GIT_COMMITTER_EMAIL=make@localhost; }; \
	$(BIN)/python -m stages.prepare --fetch; status=$$?; command="repro"; \
	case $$status in \
	  0) images=$$($(BIN)/python -c 'import yaml; print(yaml.safe_load(open("params.yaml"))["data"]["path"])') ;; \
	  3) images=$(MNIST); command="exp run -S data.path=$(MNIST)" ;; \
	  *) exit $$status ;; \
	esac; \
	if [ "$$images" = $(MNIST) ]; then note=$$ON_MNIST; else note="Images: $$images"; fi; \
	echo "$$note"; $(BIN)/dvc $$command || exit; echo "$$note"; \
	[ -z "$$who" ] || echo "Git needs your name first, once: git config user.name NAME && git config user.email EMAIL"; \
	echo "To compare later runs with this one: git add dvc.lock params.yaml reports && git commit"; \
	echo "Now read reports/report.html"

# Before each commit, under 45 seconds: lint, format, types, and tests without DVC and TensorFlow.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/fast
	@$(BIN)/python -m tools.committed_run

# Before a pull request, under 5 minutes on two cores.
test: $(READY)
	$(BIN)/python -m pytest tests/fast tests/slow

# Under 15 minutes: README's commands, kills, full disks, studies, exports, pages in a browser.
prove: $(READY)
	$(BIN)/python -m pytest tests/prove

# Prints all experiments, those of earlier commits, too.
experiments: $(READY)
	@$(BIN)/python -m tools.experiments

# Repeats the run that is committed, on CIFAR-10 with the committed settings, and stages it for a commit.
committed-run: $(READY)
	git checkout params.yaml
	$(BIN)/dvc repro
	git add dvc.lock reports

docs: $(READY)
	$(BIN)/python -m tools.settings_page

PLAN ?= studies/mnist.yaml
study: $(READY)
	@$(BIN)/python -m studies $(PLAN)

# Writes models/export/<model>/; with ONNX=1 also ONNX, which needs packages that it names.
MODEL ?= models/finetune_fc.keras
export: $(READY)
	@$(BIN)/python export.py $(if $(ONNX),--onnx) $(MODEL)

# A page on this computer to try the models. Gradio wants older packages than the locked ones, but runs with these: --no-deps.
demo: .venv/demo
	@$(BIN)/python demo.py

.venv/demo: requirements-demo.txt $(READY)
	@echo "installing the demo's locked packages: 200 MB"
	$(PIP) --no-deps --require-hashes -r requirements-demo.txt
	@touch .venv/demo

reproduce: $(READY)
	@$(BIN)/python benchmarks/reproduce.py

# Needs uv: https://docs.astral.sh/uv/. Each further extra has a lock of its own, with the versions of the first.
EXTRAS := demo onnx
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --custom-compile-command "make lock" --quiet
NAMED := import sys, tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
lock:
	$(COMPILE) --extra dev --output-file requirements.txt pyproject.toml
	for extra in $(EXTRAS); do $(PYTHON) -c '$(NAMED)' $$extra | \
	  $(COMPILE) --constraints requirements.txt --output-file requirements-$$extra.txt - || exit; done
