#!/usr/bin/env bash
# Run the tests with the oldest, the newest and other versions of Python and of the dependencies:
#
#     bash dev/test_versions.sh                                       # all environments, every test
#     bash dev/test_versions.sh --only=lowest,newest -m 'not slow'    # some of them; other arguments go to pytest
#     bash dev/test_versions.sh --dir=/tmp/versions --build-only      # make the environments, run nothing
#
#     lowest      Python 3.10, every dependency of pyproject.toml at its lower bound
#     torch211    Python 3.12, torch 2.11
#     newest      Python 3.13, the newest of everything, whatever constraints.txt says
#
# Each environment is a folder in --dir (default: nanochat-versions in the temporary folder) with a copy of this checkout, so that
# the checkout and its .venv stay as they are. A second run updates the copies and keeps the installed packages; --fresh installs
# them anew. An interpreter that is neither on the PATH nor in pyenv is downloaded by uv. An environment that cannot be made is
# named, the others are still tested; the exit code is 0 only if all were made and passed.
set -uo pipefail
source "$(dirname -- "$0")/paths.sh"
cd -- "$(dirname -- "$0")/.."

names=(lowest torch211 newest)
dir=${TMPDIR:-/tmp}/nanochat-versions
build_only=no
fresh=no
while [ $# -gt 0 ]; do
    case $1 in
        --dir=*) dir=$(absolute "${1#*=}") || exit ;;
        --only=*) IFS=, read -r -a names <<<"${1#*=}" ;;
        --build-only) build_only=yes ;;
        --fresh) fresh=yes ;;
        --help | -h) usage "dev/test_versions.sh" ;;
        *) break ;; # for pytest
    esac
    shift
done

python_of() { # python_of NAME: the version of its Python
    case $1 in
        lowest) echo 3.10 ;;
        torch211) echo 3.12 ;;
        newest) echo 3.13 ;;
        *) echo "test_versions: --only=$1: choose from lowest, torch211, newest" >&2; exit 2 ;;
    esac
}
requirements_of() { # requirements_of NAME: its arguments of `uv pip install`, one a line
    case $1 in
        lowest) printf '%s\n' --resolution=lowest-direct ;;
        torch211) printf '%s\n' 'torch==2.11.*' ;;
        newest) printf '%s\n' --upgrade ;;
    esac
}
for name in "${names[@]}"; do python_of "$name" >/dev/null || exit 2; done

PATH="$PATH:$PWD/.venv/bin:${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin"
command -v uv >/dev/null || { echo "test_versions: no uv found: run dev/setup.sh first" >&2; exit 1; }
mkdir -p "$dir" && dir=$(cd "$dir" && pwd) || exit 1
case $dir/ in "$PWD"/*) echo "test_versions: --dir=$dir is in the checkout: choose a folder outside it" >&2; exit 2 ;; esac

find_python() { # find_python 3.12: print a working interpreter of this version, or the version for uv to find or download
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/"$1".*/bin/python; do
        if "$candidate" -c "import ctypes, ssl, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "$1"
}

copy_checkout() { # copy_checkout FOLDER: the files that git tracks and new ones, without what others have left in the folder
    local files
    files=$(mktemp)
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file" # not those that were deleted
    done >"$files"
    if [ -d "$1" ]; then
        (cd "$1" && find . -name target -prune -o -type f ! -name '_rustbpe*.so' -print0 | xargs -0 rm -f)
    fi
    mkdir -p "$1" && tar --null --files-from="$files" --create | tar --extract --directory="$1"
    local code=$?
    rm -f "$files"
    return $code
}

make_environment() { # make_environment NAME: its packages, a copy of the checkout, and the Rust extension built there
    local name=$1 folder=$dir/$1 version key
    version=$(python_of "$name")
    key="$version $(requirements_of "$name" | tr '\n' ' ') $(cksum <pyproject.toml)"
    [ $fresh = no ] || rm -rf "$folder/venv"
    copy_checkout "$folder/source" || { echo "test_versions: $name: the checkout could not be copied" >&2; return 1; }
    if [ "$(cat "$folder/venv/made-from" 2>/dev/null)" != "$key" ]; then
        uv venv --quiet --clear --python "$(find_python "$version")" "$folder/venv" ||
            { echo "test_versions: $name: Python $version is missing, and uv could not download it" >&2; return 1; }
        local requirements
        mapfile -t requirements < <(requirements_of "$name")
        (cd "$folder/source" && uv pip install --quiet --python "$folder/venv/bin/python" --requirement pyproject.toml --extra dev \
            "${requirements[@]}") || { echo "test_versions: $name: its packages could not be installed" >&2; return 1; }
    fi
    (cd "$folder/source" && CARGO_TARGET_DIR=$dir/target uv pip install --quiet --python "$folder/venv/bin/python" --no-deps --editable .) ||
        { echo "test_versions: $name: the Rust extension could not be built" >&2; return 1; }
    echo "$key" >"$folder/venv/made-from"
}

run_tests() { # run_tests NAME PYTEST-ARGUMENTS...
    local folder=$dir/$1
    shift
    # The real data of some tests is found beside a checkout.
    NANOCHAT_SHARED_DATA=${NANOCHAT_SHARED_DATA:-$PWD/../shared/data} PATH="$folder/venv/bin:$PATH" \
        sh -c 'cd "$0" && exec python -m pytest "$@"' "$folder/source" "$@"
}

unset PYTHONDONTWRITEBYTECODE # the new environments have no bytecode yet: without a cache each process compiles torch's sources

summary=()
failed=0
for name in "${names[@]}"; do
    started=$SECONDS
    echo
    echo "== $name: making the environment in $dir/$name"
    if ! make_environment "$name"; then
        result="NOT MADE"
    else
        versions=$("$dir/$name/venv/bin/python" -c 'import platform; from importlib.metadata import version
names = ("torch", "numpy", "transformers")
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names))')
        echo "$versions"
        if [ $build_only = yes ]; then
            result=made
        elif run_tests "$name" "$@"; then
            result=ok
        else
            result=FAILED
        fi
        result="$(printf '%-8s %5d s  %s' "$result" $((SECONDS - started)) "$versions")"
    fi
    case $result in ok* | made*) ;; *) failed=1 ;; esac
    summary+=("$(printf '%-10s %s' "$name" "$result")")
done

echo
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
