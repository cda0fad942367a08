#!/usr/bin/env bash
# From nothing to a chat model on one machine with NVIDIA GPUs: bash speedrun.sh [options of scripts.base_train]
#
# The settings are those of 8 x H100. With fewer or smaller GPUs training takes longer and gives the same model: the rows of a micro-batch
# are reduced until they fit, and gradients are accumulated. WANDB_RUN=NAME logs to Weights & Biases. On a machine without an NVIDIA GPU it
# runs dev/runcpu.sh, the same pipeline for a small model; with GPUs that the installed torch cannot use it stops and says why. All options
# are checked before anything is downloaded or trained.
set -euo pipefail
{ # bash reads up to the closing brace before it executes anything, so the file may be edited while it runs
source "$(dirname -- "$0")/dev/paths.sh"
case ${1:-} in
    --help | -h) usage "$0" ;;
    *.toml) fail "$1: give options, because those of this script would override a settings file" ;;
esac
cd -- "$(dirname -- "$0")"

depth=${DEPTH:-20}    # d20: 561M parameters
shards=${SHARDS:-240} # of 250M characters each: 20 tokens per parameter x 4.8 characters per token, and a reserve

# A virtual environment with all dependencies.
bash dev/setup.sh
export PATH="$PWD/.venv/bin:$PATH" WANDB_RUN="${WANDB_RUN:-dummy}"
gpus=$(python -m nanochat.system.gpu) # stops here if torch cannot use the GPUs
if [ "$gpus" = 0 ]; then
    echo "speedrun: no CUDA GPU here, running the small pipeline for the CPU: dev/runcpu.sh"
    checkout=$PWD
    cd -- "$caller" # relative paths among the options are from there
    exec bash "$checkout/dev/runcpu.sh" "$@"
fi
on_all_gpus=(torchrun --standalone --nproc_per_node="${NPROC_PER_NODE:-$gpus}" -m)
base_train=(scripts.base_train -- --device=cuda --depth="$depth" --target_param_data_ratio=20 --save_every=1000 --keep_last=2
    --run="$WANDB_RUN" "$@")
python -m dev.check_settings nanochat.dataset -n "$shards" + "${base_train[@]}"
use_base_folder ""
# After Ctrl-C torchrun kills its processes when this time is over (torch 2.11 and older: always after 30 seconds). The evaluation that is
# running then, and the save, which is 16 GB for d32, may take longer than its default of 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
source dev/run_steps.sh # run_step: a second run skips the steps that are done and resumes a stopped one

# Text. The first shards suffice for the tokenizer; the others are downloaded while it is trained.
python -m nanochat.dataset -n 8
python -m nanochat.dataset -n "$shards" &
download=$!
trap 'kill $download 2>/dev/null || true' EXIT

# The tasks of CORE, which base_train and base_eval measure. If they cannot be downloaded, CORE is left out.
python -m scripts.base_eval --download_only --allow_missing

# The tokenizer: 65,536 tokens from 2 billion characters, and its compression of English, code and other scripts.
run_step tok_train tokenizer/tokenizer.json python -m scripts.tok_train --max_chars=2000000000 --vocab_size=65536
run_step tok_eval report/tok_eval.json python -m scripts.tok_eval

# The base model: 20 tokens per parameter, its bits per byte on training and validation text, CORE, and its accuracy on chat tasks.
wait $download
run_step base_train report/base_train.json "${on_all_gpus[@]}" "${base_train[@]}"
run_step base_loss report/base_loss.json "${on_all_gpus[@]}" scripts.base_loss -- --device=cuda
run_step base_eval report/base_eval.json "${on_all_gpus[@]}" scripts.base_eval -- --device=cuda --allow_missing
run_step chat_eval_base report/chat_eval_base.json "${on_all_gpus[@]}" scripts.chat_eval -- --device=cuda -i base --max_new_tokens=64

# Midtraining: the conversation format, multiple choice and tool use. The model's identity comes from templates (tasks/identity.py),
# the words to spell from the training text.
python -m dev.gen_synthetic_data
python -m dev.list_words
run_step mid_train report/mid_train.json "${on_all_gpus[@]}" scripts.mid_train -- --device=cuda --run="$WANDB_RUN"
run_step chat_eval_mid report/chat_eval_mid.json "${on_all_gpus[@]}" scripts.chat_eval -- --device=cuda -i mid

# Supervised fine-tuning, on fewer and better conversations.
run_step chat_sft report/chat_sft.json "${on_all_gpus[@]}" scripts.chat_sft -- --device=cuda --source=mid --run="$WANDB_RUN"
run_step chat_eval_sft report/chat_eval_sft.json "${on_all_gpus[@]}" scripts.chat_eval -- --device=cuda -i sft

# Reinforcement learning, on problems whose answers can be checked.
run_step chat_rl report/chat_rl.json "${on_all_gpus[@]}" scripts.chat_rl -- --device=cuda --source=sft --run="$WANDB_RUN"
run_step chat_eval_rl report/chat_eval_rl.json "${on_all_gpus[@]}" scripts.chat_eval -- --device=cuda -i rl

# The report: metrics, curves, samples, time and cost.
python -m nanochat.report
echo "speedrun: to chat with the model: source .venv/bin/activate && python -m scripts.chat_web"
exit
}
