#!/bin/sh
# The figures of benchmarks/README.md on a GPU, a part at a time, each to $OUT/<part>.txt. From the root of the
# repository; REFERENCE is a folder with checkouts of the published code (edm, DG, DiffRS), as for the benchmarks:
#   REFERENCE=DIR OUT=bench-gpu sh benchmarks/gpu.sh                # all parts that are not there yet
#   REFERENCE=DIR OUT=bench-gpu sh benchmarks/gpu.sh networks dg    # these
# IMAGES (50000) are drawn for `vanilla`; BATCH (512) images ride together, the published code's 100 in `dg-published`.
set -e
OUT=${OUT:-bench-gpu}
IMAGES=${IMAGES:-50000}
BATCH=${BATCH:-512}
PYTHON=${PYTHON:-python}
reference=${REFERENCE:+--reference=$REFERENCE}
mkdir -p "$OUT"

sampling() {
    $PYTHON -m benchmarks.bench_sampling --network=full --compile $reference "$@"
}

part() {
    case $1 in
    tests)         $PYTHON -m pytest -q -k "cuda or gpu or no_waiting" ;;
    gates)         $PYTHON -m pytest -q -m slow tests/test_precision.py ;;  # FD-CIFAR10 of 3 x 10,000 samples
    networks)      sampling --what=score,discriminator --batch=8,"$BATCH" --precision=fp32,tf32,fp16,bf16 --rounds=3 ;;
    dg)            sampling --what=dg --batch="$BATCH" --precision=bf16 --rounds=2 ;;
    dg-published)  sampling --what=dg --batch=100 --precision=bf16 --rounds=2 ;;
    diffrs)        sampling --what=diffrs --batch="$BATCH" --steps=9 --precision=bf16 --rounds=1 ;;
    growth)        $PYTHON -m benchmarks.bench_sampling --what=growth --precision=bf16 ;;
    discriminator) $PYTHON -m benchmarks.bench_training --what=discriminator --batch=128,"$BATCH" --compile $reference ;;
    score)         $PYTHON -m benchmarks.bench_training --what=score --network=full --batch=128 --compile $reference ;;
    metrics)       $PYTHON -m benchmarks.bench_metrics --precision=fp32,bf16 --batch=128 $reference ;;
    vanilla)       # samples of the published size of network, with random weights; the compile counts
        $PYTHON -c "from pathlib import Path; from benchmarks.modes import network_files; network_files('full', Path('$OUT'))"
        $PYTHON generate.py --network="$OUT/score.safetensors" --outdir="$OUT/samples" --dg_weight_1st_order=0 \
            --seeds=0-$((IMAGES - 1)) --batch="$BATCH" --compile=on
        rm -r "$OUT/samples" "$OUT"/*.safetensors ;;
    *)             echo "$1: no such part" >&2; return 1 ;;
    esac
}

for name in ${*:-tests gates vanilla dg networks discriminator diffrs dg-published score metrics growth}; do
    [ ! -s "$OUT/$name.txt" ] || continue
    echo "== $name"
    part "$name" > "$OUT/$name.part" 2>&1 || { tail -n 20 "$OUT/$name.part"; exit 1; }
    mv "$OUT/$name.part" "$OUT/$name.txt"
    cat "$OUT/$name.txt"
done
