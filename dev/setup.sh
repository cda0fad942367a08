#!/usr/bin/env bash
# Makes .venv ready from nothing: bash dev/setup.sh
#
# Needs bash and a Python of at least 3.10, and nothing else. Installs the dependencies in the versions of constraints.txt and builds
# the Rust tokenizer. Where there is no Rust the build fetches it, and where that fails too everything still runs from the
# checkout: the Hugging Face trainer takes over. Runs again only when something changed; may be interrupted and may run twice at once.
# $PYTHON names the interpreter to build on.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/setup-stamp

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
rust=no
if cargo --version >/dev/null 2>&1; then rust=yes; fi

# What the environment was made from. It changes with every file that matters, when Rust appears, and when the folder is moved.
rust_sources=$(find rustbpe/src -name '*.rs' | LC_ALL=C sort)
key="$(cat pyproject.toml constraints.txt dev/setup.sh rustbpe/Cargo.* $rust_sources | cksum) rust=$rust $PWD"
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

# One setup at a time. The lock belongs to this process and those it starts, so it cannot outlive them, however they end.
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
rm -f $stamp # written again when all is done

# A setup that was killed can leave packages that look installed and lack files: a new environment is then made anew, one that
# had been finished before is kept, and its packages installed over.
unfinished=$venv/setup-unfinished
reinstall=
if ! $venv/bin/python -c '' 2>/dev/null || [ "$(cat $unfinished 2>/dev/null)" = new ]; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear --without-pip $venv || fail "$python makes no virtual environment (Debian: apt install python3-venv)"
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
        say "installing uv, which installs the rest"
        $venv/bin/python -m pip --version >/dev/null 2>&1 || $venv/bin/python -m ensurepip >/dev/null 2>&1 || true
        $venv/bin/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null ||
            "$python" -m pip --python $venv/bin/python install --quiet --disable-pip-version-check uv ||
            fail "could not install uv: is the network there, and pip? (Debian: apt install python3-venv)"
    fi
fi

say "installing the dependencies (PyTorch is large: some minutes the first time)"
"$uv" pip install --python $venv/bin/python --requirement pyproject.toml --extra dev --constraint constraints.txt $reinstall ||
    fail "the dependencies could not be installed, see above; what was downloaded is kept, so run this again"
rm $unfinished

say "building the Rust tokenizer"
[ $rust = yes ] || say "no working cargo found: trying to fetch Rust for the build"
log=$venv/setup-rust.log
if "$uv" pip install --python $venv/bin/python --no-deps --editable . >$log 2>&1 && built; then
    say "done"
else
    tail -n 15 $log | sed 's/^/    /'
    say "NOTICE: the Rust trainer was not built (whole log: $log). Everything runs from this folder all the same,"
    say "NOTICE: with the Hugging Face trainer in its place. Install or mend Rust (rustup.rs) and run this again to get it."
    [ $rust = no ] || exit 0 # with Rust at hand the build should work: no stamp, so the next run tries again
fi
echo "$key" >$stamp
