#!/bin/sh
# FD-CIFAR10 and KID against evaluations per image: EDM's Heun from noise, denoising MCMC with KAR1 and with KAR2, and
# with discriminator guidance, on the networks that ship. From the root of the repository:
#   N=5000 BLOCKS=3 sh docs/results/dmcmc.sh --compile=on     # on a GPU
#   N=300 sh docs/results/dmcmc.sh --compile=off              # two hours and more on one CPU core
# Samples, metrics.json and dmcmc.png go to samples/dmcmc-BLOCKSxN. The same command again does what is missing.
set -e
. "$(dirname "$0")/points.sh"
FIRST=${FIRST:-500000}  # the first seed of Heun's samples; chains count from 0
WEIGHT=${WEIGHT:-3}  # of discriminator guidance
CHAINS=${CHAINS:-50}
BATCH=${BATCH:-$CHAINS}  # chains that run together; half of them for two processes
SAMPLES=samples/dmcmc-${BLOCKS}x$N

# chains LINE NAME OPTIONS...: one point of denoising MCMC
chains() {
    line=$1; name=$2; shift 2
    draw "$line" "$name" generate_dmcmc.py --num_samples=$ALL --chains="$CHAINS" --batch="$BATCH" "$@"
}

for steps in 3 5 9 18; do
    draw Heun heun$((2 * steps - 1)) generate.py --seeds="$FIRST-$((FIRST + ALL - 1))" --dg_weight_1st_order=0 \
        --steps=$steps "$@"
done
for nfe in 10 20 40; do
    chains 'DMCMC (KAR1)' kar1-$nfe --preset=cifar10-ours-$nfe "$@"
    chains 'DMCMC (KAR2)' kar2-$nfe --preset=cifar10-ours-$nfe --integrator=kar2 "$@"
    chains 'DMCMC (KAR1) with DG' kar1-dg-$nfe --preset=cifar10-ours-$nfe --dg_weight_1st_order="$WEIGHT" "$@"
done
measure dmcmc.png
