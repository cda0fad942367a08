#!/usr/bin/env bash
# The fast checks, to run after every edit: format, lint, types, and the tests that are not marked slow.
#
#     bash dev/check.sh                              # a few minutes on two cores
#     bash dev/check.sh tests/training -k schedule   # the arguments go to pytest
#
# Stops at the first check that fails. It uses the environment that dev/setup.sh has created. dev/test.sh runs every test and the
# checks of the Rust code.
set -euo pipefail
source "$(dirname -- "$0")/paths.sh"
cd -- "$(dirname -- "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1 # many small models on all cores
unset PYTHONDONTWRITEBYTECODE # else each process compiles torch's sources again, in an environment that uv has made

ruff format --check .
ruff check .

# One worker for each core, if all tests run: a few tests are faster without.
workers=()
if [ $# -eq 0 ]; then
    if python -c 'import xdist' 2>/dev/null; then
        workers=(-n logical --maxprocesses=8)
    else
        echo "NOTICE: pytest-xdist is not installed, so the tests run on one core: dev/setup.sh installs it"
    fi
fi

# The types are checked while the tests run.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
mypy >"$types" 2>&1 &
code=0
python -m pytest -q -m "not slow" ${workers[@]+"${workers[@]}"} "$@" || code=$?
wait $! || code=1
cat "$types"
exit $code
