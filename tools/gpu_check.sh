#!/usr/bin/env bash
# What nanopost does on one GPU, in one call of at most 8 minutes. Run it in the project's root:
#   bash tools/gpu_check.sh 450                       # every item, as far as 450 seconds reach
#   bash tools/gpu_check.sh 200 attention,graphs      # some
# Figures go to $OUT/results.txt as they come (OUT: out/gpu_check unless set), all output to $OUT/log.txt.
set -u
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}" OUT="${OUT:-out/gpu_check}"
seconds="${1:-450}"
mkdir -p "$OUT"
{ date; nvidia-smi; python3 -V; nproc; free -g; } > "$OUT/machine.txt" 2>&1
# the driver keeps the time itself; `timeout` is for a driver that hangs
timeout -k 5 $((seconds + 30)) "${PYTHON:-python3}" -m tools.gpu_check "$seconds" "${2:-}"
