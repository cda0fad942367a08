#!/usr/bin/env bash
# Every check and every test: bash dev/test.sh [pytest arguments, such as -k tokenizer]
#
# It first runs dev/setup.sh. All checks run even if one fails; the exit code is 0 only if none did.
set -uo pipefail
source "$(dirname -- "$0")/paths.sh"
cd -- "$(dirname -- "$0")/.."
# Many images of containers set this. The packages of a new environment come without bytecode, so that each of the hundreds of processes
# that the tests start would compile torch's sources for five seconds.
unset PYTHONDONTWRITEBYTECODE
bash dev/setup.sh || exit 1
export PATH="$PWD/.venv/bin:$PATH:${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin"

# The browser tests need Chromium. They are skipped, with a message, where it cannot be installed.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "== installing Chromium for the browser tests (log: .venv/chromium.log)"
    { timeout 300 apt-get update; DEBIAN_FRONTEND=noninteractive timeout 900 apt-get install -y --no-install-recommends chromium; } \
        >.venv/chromium.log 2>&1 </dev/null || echo "not installed: $(tail -n 1 .venv/chromium.log)"
fi

summary=()
failed=0

check() { # check NAME COMMAND...: run the command and record its result
    local name=$1 started=$SECONDS result=ok
    shift
    echo
    echo "== $name: $*"
    "$@" || { result=FAILED; failed=1; }
    summary+=("$(printf '%-15s %-8s %4d s' "$name" "$result" $((SECONDS - started)))")
}

skip() { # skip NAME REASON
    echo
    echo "== $1: skipped, $2"
    summary+=("$(printf '%-15s skipped, %s' "$1" "$2")")
}

check format ruff format --check .
check lint ruff check .
check types mypy
if cargo --version >/dev/null 2>&1; then
    for crate in rustbpe rustgpt; do
        check $crate-format cargo fmt --check --manifest-path $crate/Cargo.toml
        check $crate-lint cargo clippy --quiet --manifest-path $crate/Cargo.toml --all-targets --all-features -- -D warnings
        check $crate-tests cargo test --quiet --manifest-path $crate/Cargo.toml
    done
    # Tests of the extension are skipped where it is not built: here it must be, and as new as its sources.
    check rust-module python -c 'from nanochat.tokenization._rustbpe import Encoder, NativeGPT, has_vectors, read_bandwidth'
else
    skip rust "no working cargo: the Rust code is not checked"
fi
# All tests run on all cores, each with one thread. Some tests take a minute: idle workers take over what others have not begun.
workers=()
if [ $# -eq 0 ] && python -c 'import xdist' 2>/dev/null; then
    workers=(-n logical --maxprocesses=8 --dist=worksteal)
    export OMP_NUM_THREADS=1
fi
check tests python -m pytest --durations=10 ${workers[@]+"${workers[@]}"} "$@"

echo
echo "== lengths: a guide, never a failure: python -m dev.list_long"
python -m dev.list_long

echo
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
