#!/usr/bin/env bash
# Makes DIR/v5 (transformers 5) and DIR/v4 (transformers 4.57), which shares everything
# else with it: torch is 5 GB and is installed once. Does nothing when both are there
# with the same requirements.
#
#   venv.sh DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?usage: venv.sh DIR}
stamp=$(cat "$here"/requirements-v5.txt "$here"/requirements-v4.txt)
[ "$(cat "$dir/stamp" 2>/dev/null || true)" != "$stamp" ] || { echo "$dir is up to date"; exit 0; }
rm -rf "$dir"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$python is older than 3.10" >&2; exit 1; }
"$python" -m venv "$dir/v5"
"$dir/v5/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements-v5.txt"
"$python" -m venv "$dir/v4"
"$dir/v4/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements-v4.txt"
site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# A .pth adds v5's packages behind v4's own, which therefore come first.
site "$dir/v5" | xargs realpath >"$(site "$dir/v4")/shared.pth"
"$dir/v5/bin/python" -c 'import transformers; assert transformers.__version__.startswith("5.")'
"$dir/v4/bin/python" -c 'import transformers; assert transformers.__version__.startswith("4.")'
printf '%s\n' "$stamp" >"$dir/stamp"
