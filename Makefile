# make demo: the whole path on the embedded task, on a CPU, in minutes.  make test: the suite.
PYTHON ?= python3
# a pipe fails where its first command fails
SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c
SEED ?= 1337
SCALE ?= 1
BIN = .venv/bin
RUN = $(BIN)/python

.PHONY: demo real real-tokenizers dpo tulu figures speed papers results test release slow lint clean

.venv/run: requirements.txt
	@echo "making a virtual environment in .venv"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	-$(BIN)/pip install -q --disable-pip-version-check matplotlib  # the demo's picture; it works without
	@touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: .venv/run
	@echo "1/4 the start model: sft.py from scratch (2 to 4 minutes on 2 cores)"
	$(RUN) sft.py config/tiny_base.py --seed=$(SEED) --overwrite=True
	@echo "2/4 reinforcement learning with a verifiable reward: grpo.py (1 to 3 minutes)"
	PYTHONUNBUFFERED=1 $(RUN) grpo.py config/tiny.py --seed=$(SEED) --overwrite=True | tee out/tiny_grpo.txt
	@echo "3/4 three held-out problems during that training, each followed from the start to the end"
	@$(RUN) -m tools.story out/tiny_grpo.txt
	@echo "4/4 the share of held-out problems solved, before and after, by number of digits"
	$(RUN) sample.py --model=out/tiny_base --n=4 --show=0 --seed=$(SEED) --out=out/before.jsonl --overwrite=True
	$(RUN) sample.py --model=out/tiny_grpo --n=4 --show=0 --seed=$(SEED) --out=out/after.jsonl --overwrite=True
	$(RUN) plot.py out/demo.png GRPO=out/tiny_grpo/log.jsonl before=out/before.jsonl after=out/after.jsonl

.venv/gguf: .venv/run
	@echo "two packages by which transformers reads the file that the real model comes in"
	$(BIN)/pip install -q --disable-pip-version-check gguf accelerate
	@touch $@

out/smollm2/config.json: | .venv/gguf
	$(RUN) -m tools.smollm2 out/smollm2

real: out/smollm2/config.json
	@echo "1/5 SmolLM2-135M-Instruct as it is, on held-out word problems of SVAMP (all five: under an hour on 2 cores)"
	SCALE=$(SCALE) $(RUN) sample.py config/real.py --seed=$(SEED) --out=out/real_start.jsonl --overwrite=True
	@echo "2/5 supervised fine-tuning on short worked answers: sft.py"
	SCALE=$(SCALE) $(RUN) sft.py config/real.py --seed=$(SEED) --overwrite=True
	@echo "3/5 the same word problems after it"
	SCALE=$(SCALE) $(RUN) sample.py config/real.py --model=out/real_sft --seed=$(SEED) --out=out/real_sft.jsonl --overwrite=True
	@echo "4/5 reinforcement learning with a verifiable reward: grpo.py"
	SCALE=$(SCALE) $(RUN) grpo.py config/real.py --seed=$(SEED) --overwrite=True
	@echo "5/5 the same word problems after it, and the table: out/real.txt"
	SCALE=$(SCALE) $(RUN) sample.py config/real.py --model=out/real_grpo --seed=$(SEED) --out=out/real_grpo.jsonl --overwrite=True
	@($(RUN) -m tools.machine "make real SEED=$(SEED) SCALE=$(SCALE)"; cat out/smollm2/SOURCE.txt; \
	  $(RUN) plot.py out/real.png GRPO=out/real_grpo/log.jsonl start=out/real_start.jsonl SFT=out/real_sft.jsonl \
	  GRPO=out/real_grpo.jsonl) | tee out/real.txt

real-tokenizers: .venv/dev
	@echo "data.py on the tokenizers of real models, into docs/tokenizers.md: 400 MB of downloads, then minutes"
	$(RUN) -m tools.real_tokenizers

out/tiny_base/model.safetensors: | .venv/run
	$(RUN) sft.py config/tiny_base.py --seed=$(SEED) --overwrite=True

dpo: out/tiny_base/model.safetensors
	@echo "1/3 pairs from the start model's own completions: right against wrong, for training and held out"
	$(RUN) sample.py --model=out/tiny_base --data=search:train --limit=2000 --write=pairs --seed=$(SEED) \
	  --out=out/tiny_pairs.jsonl --overwrite=True
	$(RUN) sample.py --model=out/tiny_base --write=pairs --seed=$(SEED) \
	  --out=out/tiny_eval_pairs.jsonl --overwrite=True
	@echo "2/3 preference tuning: dpo.py (about a minute)"
	$(RUN) dpo.py config/tiny.py --seed=$(SEED) --overwrite=True
	@echo "3/3 the share of held-out problems solved (before: the table above)"
	$(RUN) sample.py --model=out/tiny_dpo --show=0 --seed=$(SEED) --out=out/after_dpo.jsonl --overwrite=True

tulu: out/tiny_base/model.safetensors
	@echo "1/4 TULU 3 in miniature: sft.py on 960 demonstrations (all four: 2 to 4 minutes on 2 cores)"
	$(RUN) sft.py config/tulu_tiny.py --seed=$(SEED) --overwrite=True
	@echo "2/4 dpo.py on pairs of that model's own completions"
	$(RUN) sample.py --model=out/tulu_tiny_sft --data=search:train --limit=2000 --write=pairs --seed=$(SEED) \
	  --show=0 --out=out/tulu_tiny_pairs.jsonl --overwrite=True
	$(RUN) dpo.py config/tulu_tiny.py --seed=$(SEED) --overwrite=True
	@echo "3/4 grpo.py on verifiable rewards"
	$(RUN) grpo.py config/tulu_tiny.py --seed=$(SEED) --overwrite=True
	@echo "4/4 held-out problems after each stage"
	$(RUN) sample.py --model=out/tiny_base --n=4 --show=0 --seed=$(SEED) --out=out/tulu_0.jsonl --overwrite=True
	$(RUN) sample.py --model=out/tulu_tiny_sft --n=4 --show=0 --seed=$(SEED) --out=out/tulu_1.jsonl --overwrite=True
	$(RUN) sample.py --model=out/tulu_tiny_dpo --n=4 --show=0 --seed=$(SEED) --out=out/tulu_2.jsonl --overwrite=True
	$(RUN) sample.py --model=out/tulu_tiny_grpo --n=4 --show=0 --seed=$(SEED) --out=out/tulu_3.jsonl --overwrite=True
	$(RUN) plot.py out/tulu.png start=out/tulu_0.jsonl SFT=out/tulu_1.jsonl DPO=out/tulu_2.jsonl RLVR=out/tulu_3.jsonl

figures: .venv/run
	@echo "the tables of demo, dpo and tulu, three seeds, into docs/demo.txt: 30 minutes to an hour on 2 cores"
	bash tools/figures.sh $(RUN) | tee docs/demo.txt

speed: .venv/dev
	@echo "the README's figures of speed into docs/speed.txt: about half an hour on 2 cores that do nothing else"
	for flags in "sft --against=trl" "dpo --against=trl" "grpo --against=trl" \
	  "grpo --against=trl --fill=0.4 --new_tokens=128" "grpo --against=trl --prompt_tokens=400" \
	  "generate --against=transformers --new_tokens=128" \
	  "generate --against=transformers --new_tokens=128 --fill=0.4" \
	  "generate --against=transformers --new_tokens=128 --fill=0.4 --prompt_tokens=448" \
	  "generate --against=continuous --new_tokens=128 --rounds=3" memory scale verify; do \
	  echo "python -m tools.bench --what=$$flags"; $(RUN) -m tools.bench --what=$$flags 2>/dev/null; done \
	  | grep -v '^--' | tee docs/speed.txt

out/sums_base/model.safetensors: | .venv/run
	$(RUN) sft.py config/papers/sums_base.py --seed=$(SEED) --overwrite=True

papers: out/tiny_base/model.safetensors out/sums_base/model.safetensors
	@echo "every paper against its baseline, three seeds: about four hours on 2 cores; what is done is not run again"
	$(RUN) papers/run.py

results: .venv/run
	$(RUN) -m tools.results

test: .venv/dev
	@echo "behaviour: 3 to 8 minutes on 2 cores"
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist worksteal tests

release: .venv/dev
	@echo "style, README and docs, exercises, then every mutant: about 15 minutes on 2 cores"
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/release
	$(RUN) tests/release/mutants.py

slow: .venv/dev
	@echo "kill -9 twenty times a script, and 2,000 steps: about half an hour on 2 cores"
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow -rP -n 2 --dist worksteal tests

lint: .venv/dev
	$(BIN)/ruff check .

clean:
	rm -rf .venv out wandb
