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
# Arithmetic is IEEE (no fused multiply-add, correctly rounded division, subnormals). nvcc
# writes PTX 9.0, which drivers before r580 do not read; the text is declared to be of the
# oldest version that knows the architecture, and the assembler of CUDA 12.9 refuses what
# that version does not have.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"

flags="-ptx --fmad=false --prec-div=true --prec-sqrt=true --ftz=false -std=c++17 -O3"
targets="75:7.0 80:7.0 86:7.1 89:7.8 90:8.0 90a:8.0 100:8.6 120:8.7 ptx:7.0"

mode=build
case "${1:-}" in --check) mode=check; shift ;; --all) mode=all; shift ;; esac
[ $# = 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
./toolchain.sh "$1"
bin=$(cd "$1/bin" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

file_of() { # TARGET
	if [ "$1" = ptx ]; then echo compute_80.ptx; else echo "sm_$1.cubin"; fi
}

image() { # TARGET PTX-VERSION: makes $tmp/FILE and $tmp/FILE.zst
	local arch=$1 file
	[ "$arch" != ptx ] || arch=80
	file=$(file_of "$1")
	# shellcheck disable=SC2086 # flags are words
	(cd src && "$bin/nvcc" $flags -gencode "arch=compute_$arch,code=compute_$arch" -o "$tmp/$1.raw" kernels.cu)
	sed "s/^\.version .*/.version $2/; /^\/\//d; /^$/d" "$tmp/$1.raw" >"$tmp/$1.ptx"
	if grep -q _INTERNAL_ "$tmp/$1.ptx"; then
		echo "$file: a name depends on the path of the sources: $(grep -om1 '\w*_INTERNAL_\w*' "$tmp/$1.ptx"); give it external linkage"
		exit 1
	fi
	"$bin/ptxas" -O3 --fmad=false "-arch=sm_$arch" -o "$tmp/$1.cubin" "$tmp/$1.ptx"
	if [ "$1" = ptx ]; then mv "$tmp/ptx.ptx" "$tmp/$file"; else mv "$tmp/$1.cubin" "$tmp/$file"; fi
	go run _pack/main.go "$tmp/$file" "$tmp/$file.zst"
}

digest() { sha256sum <"$1" | cut -d' ' -f1; }

header() {
	echo "# Written by build.sh, do not edit: SHA-256 of the sources and of the images made of them."
	echo "nvcc 13.0.88"
	echo "ptxas 12.9.86"
	echo "flags $flags"
	for t in $targets; do echo "target ${t%:*} ptx ${t#*:}"; done
	for f in src/*.cu src/*.h build.sh toolchain.sh _pack/main.go; do echo "source $(digest "$f") $f"; done
}

line() { # FILE: as built in $tmp
	echo "image $(digest "$tmp/$1.zst") bin/$1.zst $(digest "$tmp/$1") raw"
}

if [ "$mode" = build ]; then
	header >"$tmp/MANIFEST"
	for t in $targets; do
		image "${t%:*}" "${t#*:}"
		line "$(file_of "${t%:*}")" >>"$tmp/MANIFEST"
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
	file=$(file_of "${t%:*}")
	want=$(grep " bin/$file.zst " MANIFEST) || { echo "MANIFEST has no image $file"; exit 1; }
	if [ "$mode" = all ] || [ $((turn % count)) = $i ] || [ $(((turn + 4) % count)) = $i ] || ! grep -qxF "$want" "$tmp/base"; then
		image "${t%:*}" "${t#*:}"
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
