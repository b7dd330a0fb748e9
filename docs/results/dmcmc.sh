#!/bin/sh
# FD-CIFAR10 and KID against evaluations per image: EDM's Heun from noise, denoising MCMC with KAR1 and with KAR2, and
# with discriminator guidance, on the networks that ship. From the root of the repository:
#   N=5000 BLOCKS=3 sh docs/results/dmcmc.sh --compile=on     # on a GPU
#   N=300 sh docs/results/dmcmc.sh                            # about an hour on one CPU core
# Samples, metrics.json and dmcmc.png go to samples/dmcmc-BLOCKSxN. The same command again does what is missing.
set -e
N=${N:-300}
BLOCKS=${BLOCKS:-1}
FIRST=${FIRST:-500000}  # the first seed of Heun's samples; chains count from 0
CHAINS=${CHAINS:-50}
PYTHON=${PYTHON:-python}
SAMPLES=samples/dmcmc-${BLOCKS}x$N
ALL=$((BLOCKS * N))
images= lines=

# draw LINE NAME SCRIPT OPTIONS...: one point
draw() {
    lines=$lines${lines:+,}$1; name=$2; shift 2
    $PYTHON "$1" --outdir="$SAMPLES/$name" --num_samples=$ALL "$@"
    images="$images --images=$SAMPLES/$name"
}

# chains LINE NAME OPTIONS...: one point of denoising MCMC
chains() {
    line=$1; name=$2; shift 2
    draw "$line" "$name" generate_dmcmc.py --chains="$CHAINS" --batch="$CHAINS" "$@"
}
