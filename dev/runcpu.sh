#!/usr/bin/env bash
# From nothing to a model that answers, on a CPU, in minutes:
#
#     bash dev/runcpu.sh                       # the embedded data, a small world of stories; needs no internet
#     bash dev/runcpu.sh --data=DIR            # your own text: txt, md, jsonl or parquet files
#     bash dev/runcpu.sh --num_iterations=50   # every other option goes to scripts.base_train,
#     bash dev/runcpu.sh --sft.num_epochs=2    # and one that begins with mid, sft, rl or eval to scripts.mid_train, chat_sft, ...
#
# After your own text come conversations about who the model is, letters and word problems (dev/own_text.toml), and yours, if you have
# any: --mid.conversations=mine.jsonl --sft.conversations=mine.jsonl.
#
# A second run skips the stages that were done with the same settings on the same data. All that a run makes is in one folder:
# ~/.cache/nanochat/cpu-NAME, with the name of the data; or $NANOCHAT_BASE_DIR, where other data is replaced only if --overwrite
# says so.
set -euo pipefail
{ # bash reads to the closing brace before it begins: the file may be edited while it runs

# The settings of the demonstration.
tokenizer=(--vocab_size=1024)
model=(--depth=4 --head_dim=64 --max_seq_len=256)
training=(--total_batch_size=8192 --num_iterations=480 --warmdown_ratio=0.5 --eval_every=100 --sample_every=100)
measuring=(--eval_tokens=65536)
keeping=(--save_every=100 --keep_last=1)
mid=(--total_batch_size=8192 --embedding_lr=0.05 --matrix_lr=0.01 --warmdown_ratio=0 --eval_every=100 --eval_tokens=65536)
sft=(--source=mid --total_batch_size=8192 --embedding_lr=0.05 --matrix_lr=0.01 --init_lr_frac=0.6 --eval_every=50 --eval_tokens=65536)
rl=(--examples_per_step=16 --num_samples=16 --max_new_tokens=100 --num_iterations=90 --init_lr_frac=0.05 --sft_examples_per_step=64 --eval_every=-1 --eval_examples=50 --eval_samples=4)
asking=(--batch_size=250 --max_new_tokens=100)

data=(--source storyworld -n 3)
name=storyworld
overwrite=no
for option in "$@"; do
    case $option in
        --data=*)
            folder=$(cd "${option#--data=}" 2>/dev/null && pwd) || { echo "error: $option: no such folder" >&2; exit 2; }
            data=(--source "$folder")
            name=$(basename "$folder")
            mid=(--mixture=dev/own_text.toml "${mid[@]}")
            sft=(--mixture=dev/own_text.toml "${sft[@]}")
            rl=(--mixture=dev/own_text.toml --tasks="WordProblems|SpellingBee" "${rl[@]}")
            asking=(--task_name="WordProblems|SpellingBee" "${asking[@]}")
            ;;
        --overwrite) overwrite=yes ;;
        --mid.*) mid+=("--${option#--mid.}") ;;
        --sft.*) sft+=("--${option#--sft.}") ;;
        --rl.*) rl+=("--${option#--rl.}") ;;
        --eval.*) asking+=("--${option#--eval.}") ;;
        *) training+=("$option") ;;
    esac
done

cd "$(dirname "$0")/.."
bash dev/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
if [ -z "${NANOCHAT_BASE_DIR:-}" ]; then
    export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat/cpu-$name"
    overwrite=yes # nothing but this script writes there
fi
[ $overwrite = no ] || data+=(--overwrite)
echo "runcpu: everything goes to $NANOCHAT_BASE_DIR"

source dev/run_steps.sh

# The data depends on the files that it is made from; all that follows depends on what it became.
key=$(find "${folder:-nanochat/data/storyworld}" -type f ! -name '*.pyc' -exec cksum {} + | sort | cksum)
run_step data base_data/manifest.json python -m nanochat.dataset "${data[@]}"
key=$(cksum <"$NANOCHAT_BASE_DIR/base_data/manifest.json")
run_step tok_train tokenizer/tokenizer.json python -m scripts.tok_train "${tokenizer[@]}"
run_step tok_eval report/tok_eval.json python -m scripts.tok_eval
# The base model: English, and what is true in its world.
run_step base_train report/base_train.json python -m scripts.base_train "${model[@]}" "${measuring[@]}" "${keeping[@]}" "${training[@]}"
run_step base_loss report/base_loss.json python -m scripts.base_loss "${measuring[@]}"

# Conversations: what they look like, what the calculator is for; then the same more carefully; then what trying it out teaches.
run_step chat_eval_base report/chat_eval_base.json python -m scripts.chat_eval -i base "${asking[@]}" --max_new_tokens=32
run_step mid_train report/mid_train.json python -m scripts.mid_train "${mid[@]}" "${keeping[@]}"
run_step chat_eval_mid report/chat_eval_mid.json python -m scripts.chat_eval -i mid "${asking[@]}"
run_step chat_sft report/chat_sft.json python -m scripts.chat_sft "${sft[@]}" "${keeping[@]}"
run_step chat_eval_sft report/chat_eval_sft.json python -m scripts.chat_eval -i sft "${asking[@]}"
run_step chat_rl report/chat_rl.json python -m scripts.chat_rl "${rl[@]}" "${keeping[@]}"
run_step chat_eval_rl report/chat_eval_rl.json python -m scripts.chat_eval -i rl "${asking[@]}"

echo
echo "== report"
python -m nanochat.report
exit
}
