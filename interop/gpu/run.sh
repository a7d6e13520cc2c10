#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one: tests that must not be skipped
# there, the codes of bitsandbytes' own kernels, kernel speeds, attention beside torch's, whole
# conversions, sanitizers.
#
#   interop/gpu/run.sh WORK [STEP...]      steps: devices tests codes kernels flash e2e8 e2e1 multi sanitize (default: all)
#
# Run from the root of the repository. Programs are taken from BIN when it is set (made by
# `interop/gpu/run.sh build DIR`, on any machine with Go), else built. PYTHON is one with torch,
# transformers, accelerate and bitsandbytes. FIXTURES limits the conversions of "codes" to some of
# fixtures/arch. Prints a line per finding and closes with "N passed, N failed".
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,13p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"

build() { # build DIR
	mkdir -p "$1" && local dir
	dir=$(cd "$1" && pwd)
	CGO_ENABLED=0 go build -trimpath -o "$dir/nf4conv" ./cmd/nf4conv || return 1
	CGO_ENABLED=0 go build -trimpath -o "$dir/bench" ./internal/bench || return 1
	go run kernels/cuda/_pack/main.go -d kernels/cuda/bin/flash_sm_90.cubin.zst "$dir/flash_sm_90.cubin" || return 1
	for p in kernels/cuda/driver kernels/cuda/attention convert/gpu; do
		CGO_ENABLED=0 go test -c -trimpath -ldflags=-s -o "$dir/$(echo $p | tr / _).test" ./$p || return 1
	done
}
if [ "$1" = build ]; then build "$2"; exit; fi

work=$1; shift
mkdir -p "$work"; work=$(cd "$work" && pwd)
steps=" ${*:-devices tests codes kernels flash e2e8 e2e1 multi sanitize} "
if [ -z "${BIN:-}" ]; then BIN=$work/bin; build "$BIN" || exit 1; fi
BIN=$(cd "$BIN" && pwd)
PY=${PYTHON:-python3}
passed=0; failed=0
has() { case $steps in *" $1 "*) return 0 ;; esac; return 1; }
ok() { passed=$((passed + 1)); echo "ok   $*"; }
bad() { failed=$((failed + 1)); echo "FAIL $*"; }
judge() { local what=$1; shift; if "$@"; then ok "$what"; else bad "$what"; fi; }

if has devices; then
	nvidia-smi --query-gpu=index,name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader
	grep -m1 'model name' /proc/cpuinfo; nproc; uname -r
	found=$("$BIN/nf4conv" devices); echo "$found"
	judge "devices finds a usable GPU" grep -q '\* cuda:0' <<<"$found"
fi

if has tests; then
	for p in kernels/cuda/driver kernels/cuda/attention convert/gpu; do
		(cd $p && NF4CONV_TEST_REQUIRE=cuda "$BIN/$(echo $p | tr / _).test" -test.run 'Device' -test.v >"$work/test.log" 2>&1)
		rc=$?
		grep -E '^(--- |    --- FAIL|ok|PASS|FAIL|panic)' "$work/test.log" | tail -n 12
		[ $rc = 0 ] || grep -vE '^=== |--- PASS' "$work/test.log" | head -n 20
		judge "$p" [ $rc = 0 ]
	done
fi

# Every fixture in both types, with and without double quantization, in five block sizes: the
# CPU's bytes, and bitsandbytes' codes.
if has codes; then
	differ=0; n=0; pairs=()
	mkdir -p "$work/c" "$work/g"
	for src in fixtures/models/* fixtures/arch/${FIXTURES:-*}; do
		for t in nf4 fp4; do for dq in --double-quant --no-double-quant; do for b in 32 64 128 256 4096; do for dt in auto float16; do
			[ $dt = auto ] || [ $b = 64 ] || continue
			name=$(basename $src)-$t$dq-$b-$dt
			"$BIN/nf4conv" quantize $src "$work/c/$name" -q --no-sync --device cpu --type $t $dq --block-size $b --dtype $dt || { bad "$name on the CPU"; continue; }
			"$BIN/nf4conv" quantize $src "$work/g/$name" -q --no-sync --device cuda:0 --type $t $dq --block-size $b --dtype $dt || { bad "$name on the GPU"; continue; }
			n=$((n + 1)); diff -r "$work/c/$name" "$work/g/$name" >/dev/null || { differ=$((differ + 1)); bad "$name differs from the CPU's"; }
			rm -rf "$work/c/$name"
			if [ $dq = --no-double-quant ] && { [ $b = 64 ] || [ $b = 4096 ]; }; then pairs+=("$src" "$work/g/$name"); else rm -rf "$work/g/$name"; fi
		done; done; done; done
	done
	judge "$n conversions equal the CPU's" [ $differ = 0 ]
	judge "codes of bitsandbytes' CUDA kernels" "$PY" interop/gpu/cuda_codes.py "${pairs[@]}"
	rm -rf "$work/c" "$work/g"
fi

# The images for 9.0 run on nothing else.
if has flash; then
	judge "attention beside torch's" "$PY" interop/gpu/flash_bench.py --image "$BIN/flash_sm_90.cubin" check repeat speed textbook sparse flex memory
fi

if has kernels; then
	judge "nf4conv bench" "$BIN/nf4conv" bench --device cuda:0
	judge "bitsandbytes' kernels" "$PY" interop/gpu/bnb_kernels.py
	judge "files" "$BIN/nf4conv" bench --device cpu --dir "$work"
fi

# peak GPU memory of a command, beside what it prints
watched() {
	(m=0; while sleep 0.05; do u=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0); [ "$u" -gt $m ] && m=$u && echo $m >"$work/gpu-peak"; done) &
	local watcher=$!
	"$@"; local rc=$?
	kill $watcher; wait $watcher 2>/dev/null
	echo "     GPU memory in use at most: $(cat "$work/gpu-peak") MiB"; rm -f "$work/gpu-peak"
	return $rc
}
same() { # same A B: weights and configuration, not the timings of anything
	diff -r "$1" "$2" >/dev/null
}
e2e() { # e2e SHAPE
	local m=$work/model-$1
	[ -d "$m" ] || judge "model of shape $1" "$BIN/bench" model "$m" -shape $1
	export TMPDIR=$work
	judge "$1 on the GPU, everything on" watched "$BIN/bench" quantize "$m" -binary "$BIN/nf4conv" -runs ${RUNS:-5} -- --device cuda:0
	judge "$1 on the GPU, without sync" "$BIN/bench" quantize "$m" -binary "$BIN/nf4conv" -runs ${RUNS:-5} -- --device cuda:0 --no-sync
	judge "$1 on the CPU, without sync" "$BIN/bench" quantize "$m" -binary "$BIN/nf4conv" -runs 3 -- --device cpu --no-sync
	"$BIN/nf4conv" quantize "$m" "$work/gpu" -q --no-sync --device cuda:0; "$BIN/nf4conv" quantize "$m" "$work/cpu" -q --no-sync --device cpu
	judge "$1: the CPU's bytes" same "$work/gpu" "$work/cpu"; rm -rf "$work/gpu" "$work/cpu"
	for i in 1 2 3; do
		watched "$PY" interop/gpu/peer.py "$m" "$work/peer" 2>"$work/peer.log" | sed 's/^/     transformers + bitsandbytes: /' || tail -n 3 "$work/peer.log"
		rm -rf "$work/peer"
	done
}
! has e2e1 || e2e 1b
! has e2e8 || e2e 8b

# A device of several with too little memory, one that is not there, one that is hidden: refused before
# anything is written, or the others do it; and a run that is killed continues on other devices.
multi_faults() { # MODEL
	local m=$1 want=$work/want out=$work/fault rc
	"$BIN/nf4conv" quantize "$m" "$want" -q --no-sync --device cpu
	"$BIN/nf4conv" quantize "$m" "$out" -q --no-sync --device cuda:0,1 --gpu-memory 1GiB,64KiB 2>"$work/fault.log"; rc=$?
	sed 's/^/     /' "$work/fault.log"; judge "too little memory on one of two: exit code 2, nothing written" [ "$rc" = 2 -a ! -e "$out" -a ! -e "$out.partial" ]
	"$BIN/nf4conv" quantize "$m" "$out" -q --no-sync --device cuda:0,9 2>"$work/fault.log"; rc=$?
	sed 's/^/     /' "$work/fault.log"; judge "a device that is not there: exit code 5" [ "$rc" = 5 -a ! -e "$out" ]
	CUDA_VISIBLE_DEVICES=1 "$BIN/nf4conv" quantize "$m" "$out" -q --no-sync --device cuda; judge "a hidden device: the other does it" same "$want" "$out"; rm -rf "$out"
	CUDA_VISIBLE_DEVICES= "$BIN/nf4conv" quantize "$m" "$out" -q --no-sync --device cuda 2>"$work/fault.log"; rc=$?
	sed 's/^/     /' "$work/fault.log"; judge "all hidden: exit code 5" [ "$rc" = 5 -a ! -e "$out" ]
	"$BIN/nf4conv" quantize "$m" "$out" -q --no-sync --device cuda:0,1 --gpu-memory 1GiB,8MiB; judge "little memory on one of two" same "$want" "$out"; rm -rf "$out"
	"$BIN/nf4conv" quantize "$m" "$out" -q --device cuda & local pid=$!
	sleep 0.7; kill -9 $pid 2>/dev/null; wait $pid 2>/dev/null
	echo "     killed with $(wc -l <"$out.partial.journal" 2>/dev/null || echo no) lines in the journal"
	"$BIN/nf4conv" quantize "$m" "$out" -q --device cuda:1; judge "killed on two, continued on one" same "$want" "$out"; rm -rf "$out" "$want"
}

# One conversion shared by the GPUs of this host.
if has multi; then
	count=$(nvidia-smi -L | wc -l)
	if [ "$count" -lt 2 ]; then echo "NOT RUN: multi: $count GPU"; else
		for shape in 1b 8b; do
			m=$work/model-$shape; export TMPDIR=$work
			[ -d "$m" ] || judge "model of shape $shape" "$BIN/bench" model "$m" -shape $shape
			"$BIN/nf4conv" quantize "$m" "$work/one" -q --no-sync --device cuda:0
			for devices in cuda:0 cuda cpu; do
				judge "$shape on $devices" "$BIN/bench" quantize "$m" -binary "$BIN/nf4conv" -runs 5 -- --device $devices --no-sync
				"$BIN/nf4conv" quantize "$m" "$work/all" -q --no-sync --device $devices
				judge "$shape on $devices: one GPU's bytes" same "$work/one" "$work/all"; rm -rf "$work/all"
			done
			rm -rf "$work/one"
		done
		multi_faults "$work/model-1b"
	fi
fi

if has sanitize; then
	for tool in memcheck racecheck initcheck synccheck; do
		# The binding asks for a kernel's parameters until there is none: an error of the API that is none.
		out=$(cd convert/gpu && NF4CONV_TEST_REQUIRE=cuda timeout 120 compute-sanitizer --tool $tool $([ $tool = memcheck ] && echo --report-api-errors no) --error-exitcode 9 "$BIN/convert_gpu.test" -test.run 'EngineDevice/(bfloat16|float32)_to_bfloat16' 2>&1)
		rc=$?
		echo "$out" | grep -a 'ERROR SUMMARY\|=========.*[Ee]rror' | tail -n 3
		judge "compute-sanitizer $tool" [ $rc = 0 ]
		out=$(NF4CONV_TEST_REQUIRE=cuda timeout 120 compute-sanitizer --tool $tool $([ $tool = memcheck ] && echo --report-api-errors no) --error-exitcode 9 "$BIN/kernels_cuda_attention.test" -test.run 'Device/(bits|unseen|nan)' 2>&1)
		rc=$?
		echo "$out" | grep -a 'ERROR SUMMARY\|=========.*[Ee]rror' | tail -n 3
		judge "compute-sanitizer $tool, attention" [ $rc = 0 ]
	done
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
