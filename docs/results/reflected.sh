#!/bin/sh
# FD-CIFAR10 and KID of the shipped reflected network with each sampler, against evaluations per image, and its bits per
# dimension on test and training images. From the root of the repository:
#   N=5000 BLOCKS=3 sh docs/results/reflected.sh --compile=on     # on a GPU
#   N=150 sh docs/results/reflected.sh --compile=off              # an hour and a half on one CPU core
# TEST and TRAIN name data sets; without them no likelihood is computed. Samples, metrics.json and reflected.png go to
# samples/reflected-BLOCKSxN. The same command again does what is missing.
set -e
. "$(dirname "$0")/points.sh"
FIRST=${FIRST:-600000}  # the first seed
BPD=${BPD:-200}  # images whose likelihood is computed
SAMPLES=samples/reflected-${BLOCKS}x$N
seeds=--seeds=$FIRST-$((FIRST + ALL - 1))

for steps in 5 9 18 36; do
    draw Heun heun$steps generate_reflected.py "$seeds" --sampler=heun --steps=$steps "$@"
done
for steps in 50 100; do
    draw 'PC (mean)' pc$steps-mean generate_reflected.py "$seeds" --sampler=pc --steps=$steps --denoiser=mean "$@"
    draw 'PC (last state)' pc$steps-none generate_reflected.py "$seeds" --sampler=pc --steps=$steps --denoiser=none "$@"
done
draw ODE ode generate_reflected.py "$seeds" --sampler=ode --tolerance=1e-3 "$@"
measure reflected.png
for data in $TEST $TRAIN; do
    dir=$SAMPLES/likelihood-$(basename "$data" .zip)
    [ -e "$dir/likelihood.json" ] || $PYTHON generate_reflected.py --outdir="$dir" --likelihood="$data" \
        --max_images="$BPD" --tolerance=1e-3 "$@"
done
