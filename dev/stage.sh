# For the runs: a stage that is done is skipped, a training run that was stopped goes on. Sourced, with $NANOCHAT_BASE_DIR set.
#
# $key stands for all that the next stage depends on: every stage adds its own command to it.

mkdir -p "$NANOCHAT_BASE_DIR/done"
key=

stage() { # stage NAME RESULT COMMAND...: runs the command, unless RESULT is there and was made by it after the same stages
    local mark=$NANOCHAT_BASE_DIR/done/$1 result=$NANOCHAT_BASE_DIR/$2
    echo
    echo "== $1"
    shift 2
    key=$(echo "$key $*" | cksum)
    if [ -e "$result" ] && [ "$(cat "$mark" 2>/dev/null)" = "$key" ]; then
        echo "done already, with the same settings on the same data"
        return
    fi
    # A training run that was stopped goes on, if it left a checkpoint since it began with these settings.
    if [ "$(cat "$mark.begun" 2>/dev/null)" = "$key" ] &&
        [ -n "$(find "$NANOCHAT_BASE_DIR"/*_checkpoints/*/step_* -maxdepth 0 -newer "$mark.begun" 2>/dev/null)" ]; then
        set -- "$@" --resume
    else
        echo "$key" >"$mark.begun"
    fi
    echo "$*"
    rm -f "$mark"
    "$@"
    echo "$key" >"$mark"
    rm "$mark.begun"
}
