# Steps of speedrun.sh and dev/runcpu.sh: a step that is done is skipped, a training run that was stopped is resumed.
# Sourced, with $NANOCHAT_BASE_DIR set.
#
# $key is a hash of everything that the next step depends on: each step adds its own command to it.

mkdir -p "$NANOCHAT_BASE_DIR/done"
key=

# run_step NAME RESULT COMMAND...: run the command, unless the file RESULT exists and the same command made it after the same steps.
run_step() {
    local done_file=$NANOCHAT_BASE_DIR/done/$1 result=$NANOCHAT_BASE_DIR/$2
    echo
    echo "== $1"
    shift 2
    key=$(echo "$key $*" | cksum)
    if [ -e "$result" ] && [ "$(cat "$done_file" 2>/dev/null)" = "$key" ]; then
        echo "done already, with the same settings on the same data"
        return
    fi
    # A training run writes $NANOCHAT_RUN_ID into its checkpoints, and resumes if the last checkpoint in its folder has the same. The id
    # is kept until the step is done, and a step with another key gets another one.
    if [ "$(head -n 1 "$done_file.begun" 2>/dev/null)" != "$key" ]; then
        printf '%s\n%s\n' "$key" "$(date +%s).$$.$RANDOM" >"$done_file.begun"
    fi
    echo "$*"
    rm -f "$done_file"
    NANOCHAT_RUN_ID=$(tail -n 1 "$done_file.begun") "$@"
    echo "$key" >"$done_file"
    rm "$done_file.begun"
}
