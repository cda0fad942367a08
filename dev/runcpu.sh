#!/usr/bin/env bash
# From nothing to a small chat model, on a CPU, in minutes:
#
#     bash dev/runcpu.sh                       # the embedded data, a small world of stories; needs no internet
#     bash dev/runcpu.sh --data=DIR            # your own text: txt, md, jsonl or parquet files
#     bash dev/runcpu.sh --num_iterations=50   # other options go to scripts.base_train,
#     bash dev/runcpu.sh --sft.num_epochs=2    # those that begin with mid, sft, rl or eval to scripts.mid_train, chat_sft, chat_rl, chat_eval
#
# With your own text, the conversations are about the model's identity, letters and word problems (dev/own_text.toml). Add your own with
# --mid.conversations=mine.jsonl --sft.conversations=mine.jsonl.
#
# A second run skips the steps that were done with the same settings on the same data. All files go into one folder: $NANOCHAT_BASE_DIR, or
# ~/.cache/nanochat/cpu-NAME with the name of the data. In $NANOCHAT_BASE_DIR, --overwrite is needed to replace other data.
set -euo pipefail
{ # bash reads up to the closing brace before it executes anything, so the file may be edited while it runs

# Settings of the small model.
tokenizer=(--vocab_size=1024)
model=(--depth=4 --head_dim=64 --max_seq_len=256)
base=(--total_batch_size=8192 --num_iterations=480 --warmdown_ratio=0.5 --eval_every=100 --sample_every=100)
evaluation=(--eval_tokens=65536)
checkpoints=(--save_every=100 --keep_last=1)
mid=(--total_batch_size=8192 --embedding_lr=0.05 --matrix_lr=0.01 --warmdown_ratio=0 --eval_every=100 --eval_tokens=65536)
sft=(--source=mid --total_batch_size=8192 --embedding_lr=0.05 --matrix_lr=0.01 --init_lr_frac=0.6 --eval_every=50 --eval_tokens=65536)
rl=(--examples_per_step=16 --num_samples=16 --max_new_tokens=100 --num_iterations=90 --init_lr_frac=0.05
    --sft_examples_per_step=64 --eval_every=-1 --eval_examples=50 --eval_samples=4)
chat_eval=(--batch_size=250 --max_new_tokens=100)

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
            chat_eval=(--task_name="WordProblems|SpellingBee" "${chat_eval[@]}")
            ;;
        --overwrite) overwrite=yes ;;
        --mid.*) mid+=("--${option#--mid.}") ;;
        --sft.*) sft+=("--${option#--sft.}") ;;
        --rl.*) rl+=("--${option#--rl.}") ;;
        --eval.*) chat_eval+=("--${option#--eval.}") ;;
        *) base+=("$option") ;;
    esac
done

cd "$(dirname "$0")/.."
bash dev/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
if [ -z "${NANOCHAT_BASE_DIR:-}" ]; then
    export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat/cpu-$name"
    overwrite=yes # only this script writes there
fi
[ $overwrite = no ] || data+=(--overwrite)
echo "runcpu: everything goes to $NANOCHAT_BASE_DIR"

source dev/run_steps.sh

# The data depends on the files it is made from, and the later steps on the data.
key=$(find "${folder:-nanochat/data/storyworld}" -type f ! -name '*.pyc' -exec cksum {} + | sort | cksum)
run_step data base_data/manifest.json python -m nanochat.dataset "${data[@]}"
key=$(cksum <"$NANOCHAT_BASE_DIR/base_data/manifest.json")
run_step tok_train tokenizer/tokenizer.json python -m scripts.tok_train "${tokenizer[@]}"
run_step tok_eval report/tok_eval.json python -m scripts.tok_eval

# The base model learns the language and the facts of the text.
run_step base_train report/base_train.json python -m scripts.base_train "${model[@]}" "${evaluation[@]}" "${checkpoints[@]}" "${base[@]}"
run_step base_loss report/base_loss.json python -m scripts.base_loss "${evaluation[@]}"

# Midtraining: the conversation format and the calculator. SFT: the same at lower learning rates. RL: from its own attempts.
run_step chat_eval_base report/chat_eval_base.json python -m scripts.chat_eval -i base "${chat_eval[@]}" --max_new_tokens=32
run_step mid_train report/mid_train.json python -m scripts.mid_train "${mid[@]}" "${checkpoints[@]}"
run_step chat_eval_mid report/chat_eval_mid.json python -m scripts.chat_eval -i mid "${chat_eval[@]}"
run_step chat_sft report/chat_sft.json python -m scripts.chat_sft "${sft[@]}" "${checkpoints[@]}"
run_step chat_eval_sft report/chat_eval_sft.json python -m scripts.chat_eval -i sft "${chat_eval[@]}"
run_step chat_rl report/chat_rl.json python -m scripts.chat_rl "${rl[@]}" "${checkpoints[@]}"
run_step chat_eval_rl report/chat_eval_rl.json python -m scripts.chat_eval -i rl "${chat_eval[@]}"

echo
echo "== report"
python -m nanochat.report
exit
}
