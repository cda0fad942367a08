#!/usr/bin/env bash
# A chat model of your own documents, from a folder (or one file) to a conversation about it:
#
#     bash train_on.sh DIR                     # in a quarter of an hour
#     bash train_on.sh DIR --minutes=120       # a larger model; python -m scripts.train_on --help lists all options
#
# It installs what is missing (dev/setup.sh) and runs scripts.train_on. Everything goes to ~/.cache/nanochat/on-NAME, or to
# $NANOCHAT_BASE_DIR. The same command again goes on where it was stopped.
set -euo pipefail
{ # bash reads up to the closing brace before it executes anything, so the file may be edited while it runs
source "$(dirname -- "$0")/dev/paths.sh"
options=()
documents=
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage "$0" ;;
        --base_from=* | --base-from=*) options+=("--base_from=$(absolute "${1#*=}")") ;;
        --*=*) options+=("$1") ;;
        --grounded | --overwrite) options+=("$1") ;;
        -*)
            [ $# -gt 1 ] || fail "$1 needs a value"
            options+=("$1" "$2")
            shift
            ;;
        *)
            [ -z "$documents" ] || fail "$1: the documents are $documents already; name one folder or file"
            documents=$(absolute "$1")
            ;;
    esac
    shift
done
[ -n "$documents" ] || fail "name the folder of your documents: bash train_on.sh DIR"
[ -e "$documents" ] || fail "$documents: no such folder or file"

cd -- "$(dirname -- "$0")"
bash dev/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
# Readers of docx, pdf and others, and the writer of GGUF files. Without them such documents and the file are left out.
if ! python -c "import gguf, pypandoc, pypdf" 2>/dev/null; then
    uv pip install --quiet --python .venv/bin/python --requirement pyproject.toml --extra documents --extra gguf ||
        echo "NOTICE: readers of docx and pdf, or the writer of GGUF files, could not be installed, see above: left out" >&2
fi
exec python -m scripts.train_on "$documents" ${options[@]+"${options[@]}"}
}
