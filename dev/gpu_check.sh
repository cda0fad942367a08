#!/usr/bin/env bash
# The first ten minutes on a GPU: is everything correct there, how fast is it, and where does the time go?
#
#     bash dev/gpu_check.sh                          # everything, in 9.5 minutes at most
#     bash dev/gpu_check.sh --out=results            # where results.jsonl, table.txt and log.txt go; default: $OUT
#     bash dev/gpu_check.sh --only=parity,d20        # some parts; `--only=?` lists them
#     bash dev/gpu_check.sh --dry_run                # all parts on the CPU, in tiny sizes: do the checks themselves work?
#
# Each part runs in its own process under its own time limit, the most valuable first. Its results are written as they are measured, so a
# crash or a time-out costs no other result. Exit code: 0 if the parts that compare the GPU with the CPU pass, 1 if not. Needs no internet
# and installs nothing: torch, numpy, pyarrow, safetensors, tokenizers or the built extension are enough.
set -euo pipefail
source "$(dirname -- "$0")/paths.sh"
cd -- "$(dirname -- "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # a question for GPUs does not start CUDA, which would be unusable in forks
make_absolute OUT
options=()
for option in "$@"; do
    case $option in --out=*) option=--out=$(absolute "${option#*=}") ;; esac
    options+=("$option")
done
exec "$python" -m dev.gpu_check ${options[@]+"${options[@]}"}
