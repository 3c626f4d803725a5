#!/usr/bin/env bash
# Everything that needs a GPU, in one command or stage by stage; each stage ends inside nine minutes.
#
#   OUT=folder bash benchmarks/on_gpu.sh [--dry-run] [stage ...]
#
#   build      compile the extension for the visible card alone, and list what runs
#   tests      the whole test-suite; a backend that does not run, or a test that is skipped, is a failure
#   sanitize   compute-sanitizer's memcheck and racecheck over the exact and repeatable tests on the card
#   tune       time candidate tiles, print old and new table entries
#   compile    let torch.compile fill its cache for the peers; what is not ready can be continued by another call
#   training, inference, kernels    the benchmarks; `bench` is compile and these three
#
# Without stages: all. Needs no network, only what a machine for GPU work has: PyTorch, Triton, torchvision, timm,
# pytest, pytest-benchmark, ninja, pybind11, nvcc, compute-sanitizer. Leaves $OUT/summary.txt and for each stage
# $OUT/<stage>.tar.gz, its log and raw results, a few megabytes in all; prints the summary last and fails if a stage did.
# PYTHON, MODEL, IMAGE, BATCH and DTYPE may be set. --dry-run does the same with a tiny net on a machine without a GPU:
# what only a GPU machine has is printed instead of run.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly STAGES=(build tests sanitize tune compile training inference kernels)
readonly LIMIT=520 # seconds for a stage
readonly PYTHON=${PYTHON:-python3}
OUT=$(realpath -m "${OUT:-benchmarks/out/gpu}")
DRY=
if [[ ${1:-} == --dry-run ]]; then
    DRY=yes
    shift
fi
export TORCHINDUCTOR_CACHE_DIR=$PWD/build/inductor TRITON_CACHE_DIR=$PWD/build/triton PYTHONUNBUFFERED=1

readonly WORK=build/on_gpu${DRY:+_rehearsed} # the stage `tests` rehearses this script too
if [[ $DRY ]]; then
    readonly DEVICE=cpu MODEL=bc-10-4 IMAGE=8 BATCH=2 DTYPE=float32
else
    readonly DEVICE=cuda MODEL=${MODEL:-densenet121} IMAGE=${IMAGE:-224} BATCH=${BATCH:-256} DTYPE=${DTYPE:-bfloat16}
fi

on_gpu() { # run a command that only a GPU machine can run, or print it
    if [[ $DRY ]]; then echo "on a GPU machine: $*"; else "$@"; fi
}

under_sanitizer() { # tool, command ...: a dry run runs the command alone
    if [[ $DRY ]]; then "${@:2}"; else
        compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 86 "${@:2}"
    fi
}

bench() { # arguments of pytest: measure, results beside the log
    "$PYTHON" -m pytest -q --device "$DEVICE" --model "$MODEL" --image "$IMAGE" --batch "$BATCH" --dtype "$DTYPE" \
        --results "$WORK/$STAGE/results" "$@"
}

build() {
    local capability=
    if [[ ! $DRY ]]; then
        capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return
    fi
    on_gpu env TORCH_CUDA_ARCH_LIST="$capability" DENSENET_FAST_BUILD_CPU=1 DENSENET_FAST_BUILD_CUDA=1 \
        "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index --verbose --editable . || return
    "$PYTHON" -m densenet_fast.info
}

tests() {
    local -x DENSENET_FAST_REQUIRE=triton,native
    local which=(tests)
    if [[ $DRY ]]; then
        DENSENET_FAST_REQUIRE=eager
        which=(tests/test_exact_and_repeatable.py -k test_two_training_steps)
    fi
    "$PYTHON" -m pytest -q -p no:cacheprovider --junitxml "$WORK/$STAGE/junit.xml" "${which[@]}"
}

sanitize() {
    # Without the caching allocator every tensor has its own bounds, and a step past them is seen.
    local -x PYTORCH_NO_CUDA_MEMORY_CACHING=1
    local tool which="$DEVICE and float32 and (2x5x7 or test_two_training_steps)"
    [[ $DRY ]] || which+=" and not eager"
    for tool in memcheck racecheck; do
        under_sanitizer $tool "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_exact_and_repeatable.py \
            -k "$which" || return
    done
}

tune() {
    "$PYTHON" -m benchmarks.tune ${DRY:+--dry-run}
}

compile() {
    local peers=compile*
    [[ $DRY ]] && peers=torchvision # compiling takes minutes on any machine
    bench benchmarks/bench_model.py -k "not allocator" --peers "$peers" --rounds 1 --seconds 0 --compile-limit 220
}

training() {
    bench benchmarks/bench_model.py -k "test_training and not allocator" ${DRY:+--rounds 1 --seconds 0} \
        --peers "$([[ $DRY ]] && echo uncompiled || echo all)" --compile-limit 300
}

inference() {
    bench benchmarks/bench_model.py -k test_inference ${DRY:+--rounds 1 --seconds 0} \
        --peers "$([[ $DRY ]] && echo uncompiled || echo all)" --compile-limit 300
}

kernels() {
    local some=()
    [[ $DRY ]] && some=(-k "operation or largest or C37 or 16layers or 70layers" --rounds 1 --seconds 0)
    bench benchmarks/bench_operation.py benchmarks/bench_block.py benchmarks/bench_scaling.py \
        benchmarks/bench_memory.py "${some[@]}"
}

requested=()
for name in "${@:-${STAGES[@]}}"; do
    case " ${STAGES[*]} bench " in
        *" $name "*) ;;
        *)
            echo "unknown stage: got '$name', expected some of ${STAGES[*]} bench" >&2
            exit 2
            ;;
    esac
    if [[ $name == bench ]]; then requested+=(compile training inference kernels); else requested+=("$name"); fi
done

mkdir -p "$OUT"
summary=$OUT/summary.txt
{
    git describe --always --dirty 2>/dev/null || echo "no git"
    on_gpu nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader
} >"$summary" 2>&1
failed=0
export -f on_gpu under_sanitizer bench "${STAGES[@]}"
export PYTHON WORK DRY DEVICE MODEL IMAGE BATCH DTYPE
for STAGE in "${requested[@]}"; do
    export STAGE
    rm -rf "${WORK:?}/$STAGE" && mkdir -p "$WORK/$STAGE"
    log=$WORK/$STAGE/log.txt
    echo "== $STAGE"
    started=$SECONDS
    # An interrupt, not a kill: pytest then still writes what it has measured.
    timeout --signal INT --kill-after 20 "$LIMIT" bash -c "$STAGE" 2>&1 | tee "$log" | tail -n 40
    code=${PIPESTATUS[0]}
    case $code in
        0) verdict=ok ;;
        124 | 137) verdict="FAILED (over $LIMIT s)" ;;
        *) verdict="FAILED (exit code $code)" ;;
    esac
    [[ $code == 0 ]] || failed=1
    printf '%-10s %-24s %4d s  %s\n' "$STAGE" "$verdict" $((SECONDS - started)) "$(grep -v '^ *$' "$log" | tail -n 1 | cut -c -80)" >>"$summary"
    tar -czf "$OUT/$STAGE.tar.gz" -C "$WORK" "$STAGE"
done
echo
cat "$summary"
du -sh "$OUT" | sed "s/\t.*/ in the output folder/"
exit $failed
