#!/usr/bin/env bash
# The tables of demo, dpo and tulu on three seeds, and three controls, on standard output:
#   make figures      # it keeps them in docs/demo.txt
# From all that the targets print, `keep` takes the lines of the tables and of the held-out pairs.
set -euo pipefail
python="${1:?the python to run, say .venv/bin/python}"

keep() { grep -E '^ {6,}(all|gain|[0-9]+) |^difficulty|pairs of [0-9]|^step.*eval/accuracy'; }

# measure MODEL SEED: pass@1 of a model on the held-out problems, one line
measure() {
  "$python" sample.py --model="$1" --n=4 --show=0 --seed="$2" --out="$1.jsonl" --overwrite=True | grep -E '^ {6,}all '
}

"$python" -m tools.machine "make figures"
for seed in 1 2 1337; do
  # demo makes the start model of this seed; all that follows begins with it
  for target in demo dpo tulu; do
    echo "make $target SEED=$seed"
    make -s "$target" SEED="$seed" | keep
  done

  echo "make tulu SEED=$seed, its DPO without sft_coef, at the learning rate that is best then"
  "$python" dpo.py config/tulu_tiny.py --sft_coef=0 --learning_rate=5e-5 \
    --seed="$seed" --out_dir=out/tulu_dpo0 --overwrite=True > out/tulu_dpo0.txt
  measure out/tulu_dpo0 "$seed"

  echo "the demo's GRPO with SEED=$seed, but twice the prompts, half the steps, and the mean over all tokens"
  "$python" grpo.py config/tiny.py --prompts_per_step=64 --max_steps=48 --loss_denominator=tokens \
    --seed="$seed" --out_dir=out/grpo64 --overwrite=True > out/grpo64.txt
  measure out/grpo64 "$seed"

  echo "make tulu SEED=$seed, but 300 steps of sft.py and nothing after it"
  "$python" sft.py config/tulu_tiny.py --max_steps=300 \
    --seed="$seed" --out_dir=out/sft300 --overwrite=True > out/sft300.txt
  measure out/sft300 "$seed"
done
