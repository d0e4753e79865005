#!/usr/bin/env bash
# Everything that only a GPU can show, in about a quarter of an hour: on_gpu.sh OUT. Needs torch, numpy and timm, no
# network. Without a GPU it is a dry run on the CPU. The parts, and what each leaves in OUT, are in on_gpu.py.
# One part alone, for longer: on_gpu.sh OUT --part throughput --seconds 3000.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" "$root/benchmarks/on_gpu.py" "$@"
