#!/bin/sh
# The figures of benchmarks/README.md on a GPU, a part at a time, each to $OUT/<part>.txt. From the root of the
# repository; REFERENCE is a folder with checkouts of the published code (edm, DG, DiffRS), as for the benchmarks:
#   REFERENCE=DIR OUT=bench-gpu sh benchmarks/gpu.sh                # all parts that are not there yet
#   REFERENCE=DIR OUT=bench-gpu sh benchmarks/gpu.sh networks dg    # of these
# `vanilla` draws IMAGES (50000) samples; BATCH (512) images ride together, in `dg-published` DG's 100. `gates-*` are
# FD-CIFAR10 of 3 x 10,000 samples in float32 and bfloat16.
OUT=${OUT:-bench-gpu}
IMAGES=${IMAGES:-50000}
BATCH=${BATCH:-512}
PYTHON=${PYTHON:-python3}
TEST="$PYTHON -m pytest -q -p no:benchmark"  # beside that plugin they fail

bench() {
    module=$1; shift
    $PYTHON -m "benchmarks.bench_$module" ${REFERENCE:+"--reference=$REFERENCE"} "$@"
}

# samples of a network of the published size, with random weights; the time includes compiling
vanilla() {
    folder=$(mktemp -d) || return 1
    $PYTHON -c "import sys, pathlib, benchmarks.modes as m; m.network_files('full', pathlib.Path(sys.argv[1]))" "$folder" &&
        $PYTHON generate.py --network="$folder/score.safetensors" --outdir="$folder/samples" --dg_weight_1st_order=0 \
            --seeds=0-$((IMAGES - 1)) --batch="$BATCH" --compile=on
    ended=$?
    rm -r "$folder"
    return $ended
}

part() {
    case $1 in
    tests)         $TEST -k "cuda or gpu or waiting" ;;
    gates-*)       $TEST -m slow tests/laws/test_precision.py -k "test_distances and ${1#gates-}" ;;
    vanilla)       vanilla ;;
    dg)            bench sampling --network=full --compile --what=dg --batch="$BATCH" --precision=bf16 ;;
    dg-published)  bench sampling --network=full --compile --what=dg --batch=100 --precision=bf16 ;;
    networks)      bench sampling --network=full --compile --what=score,discriminator --batch=8,"$BATCH" \
                       --precision=fp32,tf32,fp16,bf16 ;;
    discriminator) bench training --compile --what=discriminator --batch=128,"$BATCH" ;;
    diffrs)        bench sampling --network=full --compile --what=diffrs --batch="$BATCH" --steps=9 --precision=bf16 \
                       --rounds=1 ;;
    score)         bench training --compile --what=score --network=full --batch=128 ;;
    metrics)       bench metrics --what=fid,features --precision=fp32,bf16 --batch=128 ;;  # traces are a CPU's work
    growth)        bench sampling --what=growth --precision=bf16 --compile ;;
    *)             echo "no such part"; return 1 ;;
    esac
}

mkdir -p "$OUT" || exit 1
failed=
ALL="tests vanilla networks dg diffrs discriminator metrics score dg-published growth gates-edm gates-guidance \
    gates-rejection"
for name in ${*:-$ALL}; do
    [ ! -s "$OUT/$name.txt" ] || { echo "== $name is there"; continue; }
    echo "== $name"
    if part "$name" > "$OUT/$name.part" 2>&1; then
        mv "$OUT/$name.part" "$OUT/$name.txt"
        cat "$OUT/$name.txt"
    else
        tail -n 20 "$OUT/$name.part"
        failed="$failed $name"
    fi
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
