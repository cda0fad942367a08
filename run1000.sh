#!/usr/bin/env bash
# The $1000 run: speedrun.sh with a model of 1.9B parameters (d32) and 38B tokens: bash run1000.sh [options of scripts.base_train]
set -euo pipefail
DEPTH=32 SHARDS=800 exec bash "$(dirname -- "$0")/speedrun.sh" "$@"
