#!/usr/bin/env bash
# From nothing to a small chat model, on a CPU, in minutes:
#
#     bash dev/runcpu.sh                       # the embedded data, a small world of stories; needs no internet
#     bash dev/runcpu.sh --data DIR            # your own text: a folder or file of txt, md, jsonl or parquet
#     bash dev/runcpu.sh --num_iterations=50   # other options go to scripts.base_train,
#     bash dev/runcpu.sh --sft.num_epochs=2    # those that begin with mid, sft, rl or eval to scripts.mid_train, chat_sft, chat_rl, chat_eval
#
# Files are looked for in the folder that you call it from. All options are checked before anything is trained.
#
# With your own text, the conversations are about the model's identity, letters and word problems (dev/own_text.toml). Add your own with
# --mid.conversations=mine.jsonl --sft.conversations=mine.jsonl.
#
# A second run skips the steps that were done with the same settings on the same data. All files go into one folder: $NANOCHAT_BASE_DIR, or
# ~/.cache/nanochat/cpu-NAME with the name of the data. In $NANOCHAT_BASE_DIR, --overwrite is needed to replace other data.
set -euo pipefail
{ # bash reads up to the closing brace before it executes anything, so the file may be edited while it runs

source "$(dirname -- "$0")/paths.sh"

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
while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
        --help | -h) usage "$0" ;;
        --overwrite) overwrite=yes && continue ;;
        --*=*) ;;
        --*) # the value may be the next word
            if [ $# -gt 0 ]; then
                case $1 in -[!0-9.]* | "") ;; *) option=$option=$1 && shift ;; esac
            fi
            ;;
        *) fail "$option: not an option of runcpu.sh; bash dev/runcpu.sh --help shows them" ;;
    esac
    option=$(from_caller "$option")
    case $option in
        --data=*)
            folder=$(absolute "${option#--data=}")
            [ -e "$folder" ] || fail "$option: no such folder"
            name=$(basename -- "$folder")
            [ ! -d "$folder" ] || folder=$(cd -- "$folder" && pwd -P)
            data=(--source "$folder")
            mid=(--mixture=dev/own_text.toml "${mid[@]}")
            sft=(--mixture=dev/own_text.toml "${sft[@]}")
            rl=(--mixture=dev/own_text.toml --tasks="WordProblems|SpellingBee" "${rl[@]}")
            chat_eval=(--task_name="WordProblems|SpellingBee" "${chat_eval[@]}")
            ;;
        --mid.*) mid+=("--${option#--mid.}") ;;
        --sft.*) sft+=("--${option#--sft.}") ;;
        --rl.*) rl+=("--${option#--rl.}") ;;
        --eval.*) chat_eval+=("--${option#--eval.}") ;;
        *) base+=("$option") ;;
    esac
done
[ -n "${NANOCHAT_BASE_DIR:-}" ] || overwrite=yes # only this script writes to its own folder
[ $overwrite = no ] || data+=(--overwrite)
use_base_folder "/cpu-$name"

cd -- "$(dirname -- "$0")/.."
bash dev/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
echo "runcpu: everything goes to $NANOCHAT_BASE_DIR"

dataset=(nanochat.dataset "${data[@]}")
tok_train=(scripts.tok_train "${tokenizer[@]}")
base_train=(scripts.base_train "${model[@]}" "${evaluation[@]}" "${checkpoints[@]}" "${base[@]}")
base_loss=(scripts.base_loss "${evaluation[@]}")
mid_train=(scripts.mid_train "${mid[@]}" "${checkpoints[@]}")
chat_sft=(scripts.chat_sft "${sft[@]}" "${checkpoints[@]}")
chat_rl=(scripts.chat_rl "${rl[@]}" "${checkpoints[@]}")
python -m dev.check_settings "${dataset[@]}" + "${tok_train[@]}" + "${base_train[@]}" + "${base_loss[@]}" + "${mid_train[@]}" + \
    "${chat_sft[@]}" + "${chat_rl[@]}" + scripts.chat_eval -i base "${chat_eval[@]}"

source dev/run_steps.sh

# The data depends on the files it is made from, and the later steps on the data.
key=$(find -L "${folder:-nanochat/data/storyworld}" -type f ! -name '*.pyc' -exec cksum {} + | sort | cksum) || true
run_step data base_data/manifest.json python -m "${dataset[@]}"
key=$(cksum <"$NANOCHAT_BASE_DIR/base_data/manifest.json")
run_step tok_train tokenizer/tokenizer.json python -m "${tok_train[@]}"
run_step tok_eval report/tok_eval.json python -m scripts.tok_eval

# The base model learns the language and the facts of the text.
run_step base_train report/base_train.json python -m "${base_train[@]}"
run_step base_loss report/base_loss.json python -m "${base_loss[@]}"

# Midtraining: the conversation format and the calculator. SFT: the same at lower learning rates. RL: from its own attempts.
run_step chat_eval_base report/chat_eval_base.json python -m scripts.chat_eval -i base "${chat_eval[@]}" --max_new_tokens=32
run_step mid_train report/mid_train.json python -m "${mid_train[@]}"
run_step chat_eval_mid report/chat_eval_mid.json python -m scripts.chat_eval -i mid "${chat_eval[@]}"
run_step chat_sft report/chat_sft.json python -m "${chat_sft[@]}"
run_step chat_eval_sft report/chat_eval_sft.json python -m scripts.chat_eval -i sft "${chat_eval[@]}"
run_step chat_rl report/chat_rl.json python -m "${chat_rl[@]}"
run_step chat_eval_rl report/chat_eval_rl.json python -m scripts.chat_eval -i rl "${chat_eval[@]}"

echo
echo "== report"
python -m nanochat.report
exit
}
