#!/usr/bin/env bash
# Fetch the wheels of gpu_wheels.txt into a folder, to be carried to a GPU machine that reaches no package index.
# usage: benchmarks/fetch_gpu_wheels.sh FOLDER [PYTHON_VERSION]        there: pip install --no-index --no-deps FOLDER/*.whl
set -euo pipefail
folder=${1:?usage: fetch_gpu_wheels.sh FOLDER [PYTHON_VERSION]} version=${2:-3.12} most_mb=64
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
platforms=()
for glibc in 2_28 2_27 2_24 2_17 2_5; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
  --dest "$folder" --requirement "$here/gpu_wheels.txt"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" docrep==0.3.2 # of scvi-tools; it has no wheel of its own
size=$(du -sm "$folder" | cut -f1)
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $size MB"
[ "$size" -le "$most_mb" ] || { echo "more than $most_mb MB: leave out what the machine has" >&2; exit 1; }
