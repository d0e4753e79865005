#!/usr/bin/env bash
# Everything that only a GPU can show, in under ten minutes: on_gpu.sh OUT. Needs torch, numpy and timm, no network.
# Without a GPU it is a dry run on the CPU. The parts, and what each leaves in OUT, are in on_gpu.py.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" "$root/benchmarks/on_gpu.py" "$@"
