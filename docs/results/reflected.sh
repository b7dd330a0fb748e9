#!/bin/sh
# FD-CIFAR10 and KID of the shipped reflected network with each sampler, against evaluations per image, and its bits per
# dimension on test and training images. From the root of the repository:
#   N=5000 BLOCKS=3 sh docs/results/reflected.sh --compile=on     # on a GPU
#   N=300 sh docs/results/reflected.sh                            # two hours and more on one CPU core
# TEST and TRAIN name data sets; without them no likelihood is computed. Samples, metrics.json and reflected.png go to
# samples/reflected-BLOCKSxN. The same command again does what is missing.
set -e
N=${N:-300}
BLOCKS=${BLOCKS:-1}
FIRST=${FIRST:-600000}  # the first seed
BPD=${BPD:-200}  # images whose likelihood is computed
PYTHON=${PYTHON:-python}  # draws and measures; torchrun --standalone --nproc_per_node=2 uses two cores
PLOT=${PLOT:-python}
SAMPLES=samples/reflected-${BLOCKS}x$N
seeds=--seeds=$FIRST-$((FIRST + BLOCKS * N - 1))
images= lines=

# draw LINE NAME OPTIONS...: one point
draw() {
    lines=$lines${lines:+,}$1; name=$2; shift 2
    $PYTHON generate_reflected.py --outdir="$SAMPLES/$name" "$seeds" "$@"
    images="$images --images=$SAMPLES/$name"
}

for steps in 5 9 18 36; do
    draw Heun heun$steps --sampler=heun --steps=$steps "$@"
done
for steps in 50 100; do
    draw 'PC (mean)' pc$steps-mean --sampler=pc --steps=$steps --denoiser=mean "$@"
    draw 'PC (last state)' pc$steps-none --sampler=pc --steps=$steps --denoiser=none "$@"
done
draw ODE ode --sampler=ode --tolerance=1e-3 "$@"
$PYTHON calc_metrics.py calc $images --metrics=fd,kid --num_samples="$N" --blocks="$BLOCKS" --json="$SAMPLES/metrics.json"
$PLOT plot.py curve "$SAMPLES/metrics.json" --x=report.nfe.mean --lines="$lines" --out="$SAMPLES/reflected.png" \
    --xlabel="evaluations of the score network per image"
for data in $TEST $TRAIN; do
    dir=$SAMPLES/likelihood-$(basename "$data" .zip)
    [ -e "$dir/likelihood.json" ] || $PYTHON generate_reflected.py --outdir="$dir" --likelihood="$data" \
        --max_images="$BPD" --tolerance=1e-3 "$@"
done
