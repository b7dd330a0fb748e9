#!/bin/sh
# FD-CIFAR10 against evaluations per image: the points of the README, "Diffusion rejection sampling". From the root of
# the repository:
#   N=10000 sh docs/results/diffrs.sh --batch=1000 --compile=on                    # three blocks of N images, on a GPU
#   N=10000 BLOCKS=1 sh docs/results/diffrs.sh --batch=100 --compile=on            # one block: an hour a point on two cores
# Samples and distances go to samples/diffrs-BLOCKSxN. The same command again does what is missing.
set -e
N=${N:-500}
BLOCKS=${BLOCKS:-3}
FIRST=${FIRST:-300000}  # the first seed
PYTHON=${PYTHON:-python}
SAMPLES=samples/diffrs-${BLOCKS}x$N
seeds=--seeds=$FIRST-$((FIRST + BLOCKS * N - 1))

# draw NAME SCRIPT OPTIONS...: one point
draw() {
    name=$1; script=$2; shift 2
    [ ! -s "$SAMPLES/$name.json" ] || return 0
    if [ "$script" = generate_diffrs.py ]; then  # all percentiles share one warm-up
        thresholds=$(ls "$SAMPLES"/*/thresholds.json 2>/dev/null | head -n 1)
        $PYTHON generate_diffrs.py --outdir="$SAMPLES/$name" $seeds ${thresholds:+--thresholds="$thresholds"} "$@"
    else
        $PYTHON generate.py --outdir="$SAMPLES/$name" $seeds "$@"
    fi
    $PYTHON fid_npzs.py --images="$SAMPLES/$name" --num_samples="$N" --blocks="$BLOCKS" --batch=500 --json="$SAMPLES/$name.json"
}

draw p0.9 generate_diffrs.py --rej_percentile=0.9 "$@"
draw p0.75 generate_diffrs.py --rej_percentile=0.75 "$@"
draw p0.95 generate_diffrs.py --rej_percentile=0.95 "$@"
draw vanilla21 generate.py --dg_weight_1st_order=0 --steps=21 "$@"  # as many evaluations as p0.9
draw p0.5 generate_diffrs.py --rej_percentile=0.5 "$@"
draw p0.9-max50 generate_diffrs.py --rej_percentile=0.9 --max_iter=50 "$@"
draw vanilla18 generate.py --dg_weight_1st_order=0 "$@"
draw dg2 generate.py --dg_weight_1st_order=2 "$@"
draw vanilla36 generate.py --dg_weight_1st_order=0 --steps=36 "$@"
