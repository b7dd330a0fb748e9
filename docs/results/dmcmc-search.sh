#!/bin/sh
# A search around the presets cifar10-ours-*: FD-CIFAR10 and KID of denoising MCMC at 10, 20 and 40 evaluations per
# image, by the split between chain and integrator (KAR1) and by the size of the Langevin steps. From the root:
#   N=5000 sh docs/results/dmcmc-search.sh --compile=on     # on a GPU
#   N=160 sh docs/results/dmcmc-search.sh --compile=off     # an hour on one CPU core
# Samples and metrics.json go to samples/dmcmc-search-BLOCKSxN. The same command again does what is missing.
set -e
. "$(dirname "$0")/points.sh"
CHAINS=${CHAINS:-50}
BATCH=${BATCH:-$CHAINS}  # chains that run together; half of them for two processes
SAMPLES=samples/dmcmc-search-${BLOCKS}x$N

# setting N_SKIP STEPS ETA OPTIONS...: n_skip + 2 steps evaluations
setting() {
    skip=$1; steps=$2; eta=$3; shift 3
    draw "$((skip + 2 * steps)) evaluations" skip$skip-steps$steps-eta$eta generate_dmcmc.py --num_samples=$ALL \
        --chains="$CHAINS" --batch="$BATCH" --integrator=kar1 --n_skip=$skip --steps=$steps --eta=$eta "$@"
}

# A setting of the same cost on either side of the middle one, and smaller and larger Langevin steps in the middle.
for split in '2 4' '4 3' '6 2' '4 8' '10 5' '14 3' '10 15' '20 10' '30 5'; do
    setting $split 2 "$@"
done
for split in '4 3' '10 5' '20 10'; do
    for eta in 1 4; do
        setting $split $eta "$@"
    done
done
measure
