# make demo: the whole job on a small network.  make test: the tests.  Both set up .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
# Threads that wait do not spin: several times faster where something else runs on the same cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test setup help clean-demo

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@$(BIN)/python -c "import torch, torchvision; print('torch', torch.__version__, 'with torchvision', torchvision.__version__)" \
	    || { echo 'torch and torchvision do not match each other: install both from one source (see README.md)'; exit 1; }
	touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

demo: setup
	@echo "1/5  500 vanilla samples"
	$(BIN)/python generate.py --outdir=$(DEMO)/vanilla --seeds=0-499 --steps=9 --dg_weight_1st_order=0
	@echo "2/5  500 guided samples, from the same seeds"
	$(BIN)/python generate.py --outdir=$(DEMO)/guided --seeds=0-499 --steps=9
	@echo "3/5  their distances to CIFAR-10"
	$(BIN)/python fid_npzs.py --images=$(DEMO)/vanilla --images=$(DEMO)/guided --num_samples=500
	@echo "4/5  both grids side by side"
	$(BIN)/python plot.py grid $(DEMO)/vanilla $(DEMO)/guided --out=$(DEMO)/grids.png
	@echo "5/5  every metric with its error, on one page"
	$(BIN)/python calc_metrics.py calc --images=$(DEMO)/vanilla --images=$(DEMO)/guided --num=500 --json=$(DEMO)/metrics.json
	$(BIN)/python plot.py report $(DEMO)/vanilla $(DEMO)/guided $(DEMO)/metrics.json --out=$(DEMO)/report.html
	@echo "Open $(DEMO)/report.html, or look at $(DEMO)/grids.png"

clean-demo:
	rm -rf $(DEMO)

help: setup
	$(BIN)/python docs/make_help.py
