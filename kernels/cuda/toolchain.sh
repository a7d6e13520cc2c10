#!/usr/bin/env bash
# The compilers that build.sh uses, unpacked from pinned wheels of the Python package
# index: no GPU, no system CUDA, no root.
#
#   toolchain.sh DIR       DIR/bin/nvcc (13.0.88) and DIR/bin/ptxas (12.9.86); 250 MB
#
# nvcc 13.0 is the last front end that knows every architecture from sm_75 to sm_120; the
# older assembler makes cubins that drivers from r525 on load. What is already in place is
# not fetched again. Needs python3 with pip.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
root=$(cd "$1" && pwd)
python=${PYTHON:-python3}

# get DIR WHEEL==VERSION...: unpacks wheels into DIR, once.
get() {
	local dir=$1 want tmp
	shift
	want="$*"
	[ "$(cat "$dir/.wheels" 2>/dev/null || true)" != "$want" ] || return 0
	rm -rf "$dir"
	mkdir -p "$dir"
	tmp=$(mktemp -d)
	"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
		--platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2010_x86_64 \
		--platform manylinux_2_12_x86_64 --platform manylinux1_x86_64 -d "$tmp" "$@"
	"$python" - "$dir" "$tmp"/*.whl <<-'PY'
		import sys, zipfile
		for wheel in sys.argv[2:]:
		    zipfile.ZipFile(wheel).extractall(sys.argv[1])
	PY
	rm -rf "$tmp"
	echo "$want" >"$dir/.wheels"
}

# A wrapper, because nvcc looks for its profile beside the name it was called by.
wrap() {
	printf '#!/bin/sh\nd=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)\nexec "$d/%s" "$@"\n' "$2" >"$root/bin/$1"
	chmod +x "$root/bin/$1"
}

mkdir -p "$root/bin"
get "$root/cu13" nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
chmod +x "$root"/cu13/nvidia/cu13/bin/* "$root"/cu13/nvidia/cu13/nvvm/bin/*
wrap nvcc cu13/nvidia/cu13/bin/nvcc
get "$root/cu12" nvidia-cuda-nvcc-cu12==12.9.86
chmod +x "$root"/cu12/nvidia/cuda_nvcc/bin/*
wrap ptxas cu12/nvidia/cuda_nvcc/bin/ptxas
