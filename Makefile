# make demo   set up what it needs, then run the main job: an instruction moves the simulated Go2
# make test   set up everything, then lint, type check, import contracts, tests
# make setup  set up everything
# make lint   the first three of those
# make bench  the figures of the README, measured (benchmarks/main_job.py --quick)
# make results   make bench and make demo, then write their tables and pictures into README.md and docs/
# make setup-vllm   set up vLLM in an environment of its own, for `vsd cloud --engine vllm`
# make lock   write requirements.lock anew;  make clean   remove what was built

SHELL := /bin/bash
PY := .venv/bin/python
export MUJOCO_GL ?= osmesa
export PYOPENGL_PLATFORM ?= osmesa
export OMP_NUM_THREADS ?= 1
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
export PYTHONFAULTHANDLER ?= 1
PYTEST_ARGS ?=
JOBS ?= 2
DEMO_ARGS ?=

.PHONY: setup setup-demo setup-vllm demo test lint bench results lock clean
.DEFAULT_GOAL := demo

setup:
	@bash .ci/setup test

setup-demo:
	@bash .ci/setup demo

setup-vllm:
	@bash .ci/setup-vllm

demo: setup-demo
	@$(PY) -m vlm_spec_decode.cli demo $(DEMO_ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

test: lint
	@JOBS=$(JOBS) bash .ci/tests $(PYTEST_ARGS)

bench: setup-demo
	@$(PY) benchmarks/main_job.py --quick

# A bar that is missed is written down like one that holds, so a failed benchmark does not end this.
results: setup-demo
	-$(PY) benchmarks/main_job.py --quick
	$(PY) -m vlm_spec_decode.cli demo $(DEMO_ARGS)
	cp out/main_job/main_job.json docs/results/main_job.json
	cp out/demo/run.json docs/results/demo.json
	cp out/demo/frames/step_01.png out/demo/path.png docs/images/
	cp out/demo/frames/step_01.jpg docs/images/frame.jpg
	cp out/demo/run.gif docs/images/demo.gif
	$(PY) benchmarks/tables.py

lock: setup
	bash .ci/lock

clean:
	rm -rf build dist install log out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
