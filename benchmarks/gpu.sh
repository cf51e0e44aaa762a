#!/usr/bin/env bash
# All measurements that need a GPU, in at most nine minutes: bash benchmarks/gpu.sh OUT [--help]
# The interpreter is $PYTHON (default: python3). hitdet_nni is taken from this checkout and need not be installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
