#!/bin/sh
# FD-CIFAR10 and KID of samplers with what improves them, on the networks that ship. From the root of the repository:
#   N=5000 GUIDE=path/to/an/early/snapshot.safetensors sh docs/results/compositions.sh --batch=1000 --compile=on
#   N=160 sh docs/results/compositions.sh --compile=off                          # two hours on one CPU core
# GUIDE guides the network that ships (autoguidance); without it those points are left out. ONLY: see points.sh.
# Samples, metrics.json and front.png go to samples/compositions-BLOCKSxN. The same command again does what is missing.
# N times BLOCKS has to be a multiple of 4, the size of a group of particles.
# Not in the table: DiffRS with Restart, particles, UniPC or DMCMC; particles with UniPC or DMCMC (docs/equations.md,
# "What goes together").
set -e
. "$(dirname "$0")/points.sh"
FIRST=${FIRST:-700000}  # the first seed; chains count from 0
WEIGHT=${WEIGHT:-3}  # of discriminator guidance
GUIDING_WEIGHT=${GUIDING_WEIGHT:-1.2}  # of autoguidance; 2 does harm with a snapshot of 16,000 images (README.md)
REJECT=${REJECT:-0.9}  # DiffRS's percentile
WARMUP=${WARMUP:-10}  # rounds of DiffRS's warm-up
CHAINS=${CHAINS:-50}
BATCH=${BATCH:-$CHAINS}  # chains that run together; half of them for two processes
SAMPLES=samples/compositions-${BLOCKS}x$N
seeds=--seeds=$FIRST-$((FIRST + ALL - 1))
plain=--dg_weight_1st_order=0
dg=--dg_weight_1st_order=$WEIGHT

# autoguided LINE NAME SCRIPT OPTIONS...: a point, if there is a guide
autoguided() {
    [ -z "$GUIDE" ] || draw "$@" --guiding_network="$GUIDE" --guiding_weight="$GUIDING_WEIGHT"
}

# guided NAME SCRIPT OPTIONS...: a sampler plain, with discriminator guidance, and with autoguidance
guided() {
    sampler=$1; shift
    draw plain "$sampler" "$@" $plain
    draw DG "$sampler-dg" "$@" $dg
    autoguided autoguidance "$sampler-auto" "$@" $plain
}

restart="--sampler=restart --restart=cifar10-43"
particles=--num_particles=4
rejection="--rej_percentile=$REJECT --iter_warmup=$WARMUP"
guided heun18 generate.py "$seeds" --steps=18 "$@"
guided heun36 generate.py "$seeds" --steps=36 "$@"
guided restart43 generate.py "$seeds" $restart "$@"
guided unipc10 generate.py "$seeds" --solver=unipc --steps=10 "$@"
guided dmcmc20 generate_dmcmc.py --num_samples=$ALL --chains="$CHAINS" --preset=cifar10-ours-20 "$@" --batch="$BATCH"
autoguided 'DG and autoguidance' heun18-dg-auto generate.py "$seeds" --steps=18 $dg "$@"
draw DiffRS heun18-diffrs generate_diffrs.py "$seeds" --steps=18 $rejection "$@"
draw DiffRS heun36-diffrs generate_diffrs.py "$seeds" --steps=36 --max_backsteps=36 $rejection "$@"
# Resampled at noise levels of about 2, 1, 0.5 and 0.3; all four particles are kept, or the best of them.
for kept in particles best; do
    [ $kept = particles ] || particles="$particles --select"
    draw $kept heun18-$kept generate.py "$seeds" --steps=18 $particles --resample_inds=9,10,11,12 "$@"
    draw $kept heun36-$kept generate.py "$seeds" --steps=36 $particles --resample_inds=18,20,23,25 "$@"
    draw $kept restart43-$kept generate.py "$seeds" $restart $particles "$@"
done
measure front.png
