#!/usr/bin/env bash
# Create or update the virtual environment .venv: bash dev/setup.sh
#
# Needs only bash and a Python of at least 3.10. It installs the dependencies in the versions of constraints.txt and builds the Rust
# extension. Without Rust, the build downloads it; if that fails too, everything still runs from the checkout, with the Hugging Face trainer
# instead. It does nothing if nothing has changed. It may be interrupted, and it may run twice at the same time. $PYTHON selects the
# interpreter.
set -euo pipefail
source "$(dirname -- "$0")/paths.sh"
[ $# -eq 0 ] || fail "$1: dev/setup.sh has no options; \$PYTHON selects the interpreter"
cd -- "$(dirname -- "$0")/.."
venv=.venv
stamp=$venv/setup-stamp

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }
home=${HOME:-/nonexistent} # a user without a home folder has no cargo there

PATH="$PATH:${CARGO_HOME:-$home/.cargo}/bin"
rust=no
if cargo --version >/dev/null 2>&1; then rust=yes; fi

# A hash of what the environment is made from. It changes with these files, when Rust appears, and when the folder is moved.
rust_sources=$(find rustbpe/src rustgpt/src -name '*.rs' | LC_ALL=C sort)
key="$(cat pyproject.toml constraints.txt dev/setup.sh rustbpe/Cargo.* rustgpt/Cargo.* $rust_sources | cksum) rust=$rust $PWD"
built() { ls nanochat/tokenization/_rustbpe*.so >/dev/null 2>&1; }
if [ -x $venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$key" ] && { built || [ $rust = no ]; }; then
    say "nothing to do"
    exit 0
fi

for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then break; fi
    python=
done
[ -n "$python" ] || fail "no Python of at least 3.10 found; install one (Debian: apt install python3 python3-venv), or name it in \$PYTHON"

# One setup at a time. The lock belongs to this process and those it starts, and ends with them, however they end.
if [ -z "${NANOCHAT_SETUP_LOCKED:-}" ]; then
    export NANOCHAT_SETUP_LOCKED=1
    exec "$python" -c '
import fcntl, os, sys
lock = os.open("pyproject.toml", os.O_RDONLY)
os.set_inheritable(lock, True)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: waiting for another setup of this folder", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
except OSError:
    pass  # a file system without locks
os.execvp("bash", ["bash", *sys.argv[1:]])' dev/setup.sh
fi
rm -f $stamp # written again at the end

# A setup that was killed can leave packages that seem installed but lack files. An environment that was new is then created again; one
# that had been complete before is kept, and its packages are reinstalled.
unfinished=$venv/setup-unfinished
reinstall=
if ! $venv/bin/python -c '' 2>/dev/null || [ "$(cat $unfinished 2>/dev/null)" = new ]; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear --without-pip $venv || fail "$python cannot create a virtual environment (Debian: apt install python3-venv)"
    echo new >$unfinished
elif [ -e $unfinished ]; then
    reinstall=--reinstall
else
    echo update >$unfinished
fi

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    uv=$venv/bin/uv
    if ! $uv --version >/dev/null 2>&1; then
        say "installing uv, the installer of the other packages"
        $venv/bin/python -m pip --version >/dev/null 2>&1 || $venv/bin/python -m ensurepip >/dev/null 2>&1 || true
        $venv/bin/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null ||
            "$python" -m pip --python $venv/bin/python install --quiet --disable-pip-version-check uv ||
            fail "could not install uv: it needs the network and pip (Debian: apt install python3-venv)"
    fi
fi

# Where Python may not write bytecode, as in many containers, every process would compile what it imports: 8 s for torch
# instead of 2.6.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1
say "installing the dependencies (a few minutes the first time, because PyTorch is large)"
"$uv" pip install --python $venv/bin/python --requirement pyproject.toml --extra dev --constraint constraints.txt $reinstall ||
    fail "the dependencies could not be installed, see above; downloads are kept, so run this again"
rm $unfinished

say "building the Rust extension"
[ $rust = yes ] || say "no working cargo found: trying to download Rust for the build"
log=$venv/setup-rust.log
if "$uv" pip install --python $venv/bin/python --no-deps --editable . >$log 2>&1 && built; then
    say "done"
else
    tail -n 15 $log | sed 's/^/    /'
    say "NOTICE: the Rust tokenizer was not built (log: $log). Everything still runs from this folder, with the"
    say "NOTICE: Hugging Face trainer instead. To get the Rust tokenizer, install or repair Rust (rustup.rs) and run this again."
    [ $rust = no ] || exit 0 # with Rust the build should have worked: without a stamp the next run tries again
fi
echo "$key" >$stamp
