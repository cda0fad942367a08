# Folders and files as the caller of a shell script wrote them. Sourced before the script changes to the checkout's folder.

unset CDPATH # with it `cd` may go to another folder of this name, and print it
caller=$PWD

fail() { echo "error: $*" >&2; exit 2; }

# absolute PATH: print the path that the caller means: from the caller's folder, ~ and ~user expanded.
absolute() {
    local path=$1 user home
    [ -n "$path" ] || fail "an empty path: name a file or folder (. is the current one)"
    case $path in
        "~" | "~/"*)
            [ -n "${HOME:-}" ] || fail "$path: HOME is not set, so name the folder in full"
            path=$HOME${path#"~"}
            ;;
        "~"*)
            user=${path%%/*}
            case $user in "~"*[!A-Za-z0-9._-]*) home=$user ;; *) eval "home=$user" ;; esac
            [ "$home" != "$user" ] || fail "$path: there is no user ${user#"~"} with a home folder"
            path=$home${path#"$user"}
            ;;
    esac
    case $path in /*) ;; *) path=$caller/$path ;; esac
    printf '%s\n' "$path"
}

# from_caller OPTION: print an option of a stage; a file that it names is the caller's, and must exist.
from_caller() {
    local file
    case $1 in
        --*conversations=none | --*mixture=none) ;;
        --*conversations=* | --*mixture=*)
            file=$(absolute "${1#*=}") || exit
            [ -f "$file" ] || fail "$1: no such file"
            set -- "${1%%=*}=$file"
            ;;
    esac
    printf '%s\n' "$1"
}

# use_base_folder NAME: export $NANOCHAT_BASE_DIR (default: ~/.cache/nanochatNAME), and fail if it cannot be written to.
use_base_folder() {
    local trial
    if [ -z "${NANOCHAT_BASE_DIR:-}" ]; then
        [ -n "${HOME:-}" ] || fail "HOME is not set: set HOME, or NANOCHAT_BASE_DIR to a folder"
        NANOCHAT_BASE_DIR=$HOME/.cache/nanochat$1
    fi
    export NANOCHAT_BASE_DIR
    trial=$NANOCHAT_BASE_DIR/.writable.$$.tmp
    if ! { mkdir -p -- "$NANOCHAT_BASE_DIR" && printf '%4096s' '' >"$trial" && rm -f -- "$trial"; } 2>/dev/null; then
        rm -f -- "$trial" 2>/dev/null || true
        fail "$NANOCHAT_BASE_DIR cannot be written to: set NANOCHAT_BASE_DIR to a folder that can"
    fi
}

# usage SCRIPT: print the comment at the top of a script, and exit.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//; /^set /!p;}' "$1"; exit 0; }

make_absolute() { # make_absolute VARIABLE: export a path of the environment, if it is set, as an absolute one
    local value
    if [ -n "${!1:-}" ]; then
        value=$(absolute "${!1}") || exit
        export "$1=$value"
    fi
}
make_absolute NANOCHAT_BASE_DIR
make_absolute NANOCHAT_HUB_DIR
case ${PYTHON:-} in */*) make_absolute PYTHON ;; esac # else a command of $PATH
