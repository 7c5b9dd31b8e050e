# make demo   find the wrong labels of handwritten digits, then train on the right ones
# make test   run the tests
# make lint   ruff: lint and format check; mypy: type hints
# Each creates .venv and installs requirements.txt first if needed; VENV=DIR uses another environment.

PYTHON ?= python3
VENV   ?= .venv
SEEDS  ?= 0
RATIOS ?= 0.4
OUT    ?= runs
PY      = $(VENV)/bin/python
STAMP   = $(VENV)/.requirements.txt

.PHONY: demo test lint
demo: $(STAMP)
	@set -e; for seed in $(SEEDS); do for ratio in $(RATIOS); do \
	  cell="--noise_mode sym --noise_ratio $$ratio --seed $$seed --output_dir $(OUT)"; \
	  echo "== digits, a fraction of $$ratio of the training labels redrawn at random, seed $$seed"; \
	  echo "-- zero-shot label-match"; $(PY) main_detect.py --cfg config/PEFT/digits.yaml $$cell; \
	  echo "-- phase 1: the detector"; $(PY) main_phase1.py --cfg config/PEFT/digits.yaml $$cell; \
	  echo "-- phase 2: fine-tuning on its mask"; $(PY) main_phase2.py --cfg config/FFT/digits.yaml $$cell; \
	  echo "-- for comparison: plain fine-tuning on all labels"; $(PY) main_baseline.py --cfg config/FFT/digits.yaml $$cell; \
	done; done
	@echo; $(PY) -m report.tables $(OUT)/digits
	@echo; $(PY) -m report.page $(OUT)/digits/sym-$$(printf %g $(firstword $(RATIOS)))/seed$(firstword $(SEEDS))/deft

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# .deft marks an environment created here; an existing environment without it is used as it is
$(STAMP): requirements.txt
	@if [ -x $(PY) ] && [ ! -f $(VENV)/.deft ] && [ "$(VENV)" != ".venv" ]; then exit 0; fi; \
	  $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is required, $(PYTHON) is %d.%d; use make PYTHON=python3.12 …" % v[:2])' && \
	  echo "installing requirements.txt into $(VENV) (about 5 GB, once)" && \
	  $(PYTHON) -m venv $(VENV) && touch $(VENV)/.deft && \
	  $(PY) -m pip install -q --disable-pip-version-check -r requirements.txt && cp requirements.txt $(STAMP)
