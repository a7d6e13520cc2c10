#!/usr/bin/env bash
# Makes the images in bin and MANIFEST from src, with the compilers of toolchain.sh.
#
#   build.sh TOOLS             builds everything
#   build.sh --check TOOLS     compares byte for byte: the images that changed since the
#                              base ($NF4CONV_BASE, else the parent commit), and one or two
#                              others, which rotate with the number of commits
#   build.sh --all TOOLS       compares all images
#
# TOOLS is a directory, filled by toolchain.sh when it is not yet.
#
# A module is a source that includes others: the kernels of quantization (kernels.cu), whose
# arithmetic is IEEE (no fused multiply-add, correctly rounded division, subnormals), and
# those of attention (flash_*.cu), which fuse. nvcc writes PTX 9.0, which drivers before
# r580 do not read; the text is declared to be of the oldest version that knows the
# architecture and what is used, and the assembler of CUDA 12.9 refuses what that version
# does not have.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"

flags="-ptx --fmad=false --prec-div=true --prec-sqrt=true --ftz=false -std=c++17 -O3"
flash_flags="-ptx --fmad=true --prec-div=true --ftz=false -std=c++17 -O3"
# MODULE:ARCHITECTURE:PTX-VERSION
targets="kernels:75:7.0 kernels:80:7.0 kernels:86:7.1 kernels:89:7.8 kernels:90:8.0 kernels:90a:8.0 kernels:100:8.6 kernels:120:8.7 kernels:ptx:7.0
flash_sm80:80:7.4 flash_sm80:86:7.4 flash_sm80:89:7.8 flash_sm80:90:8.0 flash_sm80:100:8.6 flash_sm80:120:8.7 flash_sm80:ptx:7.4"

mode=build
case "${1:-}" in --check) mode=check; shift ;; --all) mode=all; shift ;; esac
[ $# = 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
./toolchain.sh "$1"
bin=$(cd "$1/bin" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

file_of() { # TARGET
	local module=${1%%:*} arch=${1#*:} prefix=
	arch=${arch%:*}
	[ "$module" = kernels ] || prefix=flash_
	if [ "$arch" = ptx ]; then echo "${prefix}compute_80.ptx"; else echo "${prefix}sm_$arch.cubin"; fi
}

image() { # TARGET: makes $tmp/FILE and $tmp/FILE.zst
	local module=${1%%:*} arch=${1#*:} version=${1##*:} file how=$flags fmad=false
	arch=${arch%:*}
	file=$(file_of "$1")
	if [ "$module" != kernels ]; then
		how=$flash_flags fmad=true
		# 100 KB of shared memory a multiprocessor, or unknown.
		case $arch in 86 | 89 | 120 | ptx) how="$how -DFLASH_SMALL_SHARED" ;; esac
	fi
	[ "$arch" != ptx ] || arch=80
	# shellcheck disable=SC2086 # flags are words
	(cd src && "$bin/nvcc" $how -gencode "arch=compute_$arch,code=compute_$arch" -o "$tmp/raw" "$module.cu")
	sed "s/^\.version .*/.version $version/; /^\/\//d; /^$/d" "$tmp/raw" >"$tmp/ptx"
	if grep -q _INTERNAL_ "$tmp/ptx"; then
		echo "$file: a name depends on the path of the sources: $(grep -om1 '\w*_INTERNAL_\w*' "$tmp/ptx"); give it external linkage"
		exit 1
	fi
	"$bin/ptxas" -O3 "--fmad=$fmad" "-arch=sm_$arch" -o "$tmp/cubin" "$tmp/ptx"
	case $1 in *:ptx:*) mv "$tmp/ptx" "$tmp/$file" ;; *) mv "$tmp/cubin" "$tmp/$file" ;; esac
	go run _pack/main.go "$tmp/$file" "$tmp/$file.zst"
}

digest() { sha256sum <"$1" | cut -d' ' -f1; }

header() {
	echo "# Written by build.sh, do not edit: SHA-256 of the sources and of the images made of them."
	echo "nvcc 13.0.88"
	echo "ptxas 12.9.86"
	echo "flags kernels $flags"
	echo "flags flash $flash_flags"
	for t in $targets; do echo "target ${t//:/ }"; done
	for f in src/*.cu src/*.h build.sh toolchain.sh _pack/main.go; do echo "source $(digest "$f") $f"; done
}

line() { # FILE: as built in $tmp
	echo "image $(digest "$tmp/$1.zst") bin/$1.zst $(digest "$tmp/$1") raw"
}

if [ "$mode" = build ]; then
	header >"$tmp/MANIFEST"
	for t in $targets; do
		image "$t"
		line "$(file_of "$t")" >>"$tmp/MANIFEST"
	done
	rm -f bin/*.zst
	mkdir -p bin
	mv "$tmp"/*.zst bin/
	mv "$tmp/MANIFEST" MANIFEST
	exit
fi

header >"$tmp/header"
if ! diff <(grep -v '^image ' MANIFEST) "$tmp/header"; then
	echo "MANIFEST is not of these sources: run build.sh"
	exit 1
fi
base=${NF4CONV_BASE:-HEAD^}
git show "$base:./MANIFEST" >"$tmp/base" 2>/dev/null || : >"$tmp/base"
turn=$(git rev-list --count HEAD)
count=$(wc -w <<<"$targets")
i=0 failed=0 compared=
for t in $targets; do
	file=$(file_of "$t")
	want=$(grep " bin/$file.zst " MANIFEST) || { echo "MANIFEST has no image $file"; exit 1; }
	if [ "$mode" = all ] || [ $((turn % count)) = $i ] || [ $(((turn + count / 2) % count)) = $i ] || ! grep -qxF "$want" "$tmp/base"; then
		image "$t"
		compared="$compared $file"
		if [ "$(line "$file")" != "$want" ] || ! cmp "$tmp/$file.zst" "bin/$file.zst"; then
			echo "$file: rebuilding it gives other bytes: $(line "$file"), MANIFEST has: $want"
			failed=1
		fi
	fi
	i=$((i + 1))
done
echo "rebuilt and compared:$compared"
exit $failed
