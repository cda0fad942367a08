#!/usr/bin/env bash
# The fast checks, to run after every edit: format, lint, types, and the tests that are not marked slow.
#
#     bash dev/check.sh                              # under two minutes on two cores
#     bash dev/check.sh tests/training -k schedule   # the arguments go to pytest
#
# Stops at the first check that fails. It uses the environment that dev/setup.sh has created. dev/test.sh runs every test and the
# checks of the Rust code.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1 # the tests train many small models, which are faster on one core each

ruff format --check .
ruff check .

# The types are checked on one core while the tests begin on the other.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
mypy >"$types" 2>&1 &
python -m pytest -q -m "not slow" "$@" || { code=$?; wait || cat "$types"; exit $code; }
wait $! && code=0 || code=$?
cat "$types"
exit $code
