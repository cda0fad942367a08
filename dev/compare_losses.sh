#!/usr/bin/env bash
# Compare a few steps of every stage at two commits: equal to the last bit, or different, with the first difference.
#
#     bash dev/compare_losses.sh REF                # a commit against the working tree, uncommitted changes included
#     bash dev/compare_losses.sh REF REF2           # two commits
#     bash dev/compare_losses.sh REF --compiled     # with a compiled training run as well (a minute or two more)
#
# Takes two to three minutes on two cores. Exit code: 0 equal, 1 different, 2 cannot be compared. The Rust extension built in this
# checkout serves both sides; `cargo test` in rustbpe/ checks the extension itself. $PYTHON names the interpreter.
# dev/compare_losses.py lists the stages, the settings, and the results that are not compared.
set -euo pipefail
source "$(dirname -- "$0")/paths.sh"
cd -- "$(dirname -- "$0")/.."

refs=()
options=()
for argument in "$@"; do
    case $argument in
        --*) options+=("$argument") ;;
        *) refs+=("$argument") ;;
    esac
done
[ ${#refs[@]} -ge 1 ] && [ ${#refs[@]} -le 2 ] || fail "usage: bash dev/compare_losses.sh REF [REF2] [--compiled]"
for ref in "${refs[@]}"; do
    git rev-parse --verify --quiet "$ref^{commit}" >/dev/null || fail "$ref is not a commit of this repository: see git log"
done

python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import torch, nanochat' 2>/dev/null || fail "$python cannot import torch: run dev/setup.sh, or set \$PYTHON"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

working_tree() { # the files that git tracks or would add, as they are on the disk
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' path; do [ ! -f "$path" ] || printf '%s\0' "$path"; done |
        tar -c --null -T -
}

checkout() { # checkout FOLDER [REF]
    mkdir "$1"
    if [ -n "${2:-}" ]; then git archive "$2"; else working_tree; fi | tar -x -C "$1"
    # The extension belongs where the checkout has its type stub.
    local extension stub
    extension=$(find nanochat -name '_rustbpe*.so' | head -n 1)
    stub=$(cd "$1" && find nanochat -name '_rustbpe.pyi' | head -n 1)
    if [ -n "$extension" ] && [ -n "$stub" ]; then
        cp "$extension" "$1/$(dirname "$stub")/"
    else
        echo "NOTICE: no Rust extension in $1: its tokenizer is trained by Hugging Face's trainer"
    fi
}

checkout "$work/first" "${refs[0]}"
checkout "$work/second" "${refs[1]:-}"
"$python" dev/compare_losses.py "$work/first" "$work/second" --work="$work" \
    --names "${refs[0]}" "${refs[1]:-working tree}" ${options[@]+"${options[@]}"}
