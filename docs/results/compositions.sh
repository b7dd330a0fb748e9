#!/bin/sh
# FD-CIFAR10 and KID of samplers with what improves them, on the networks that ship. From the root of the repository:
#   N=5000 GUIDE=path/to/an/early/snapshot.safetensors sh docs/results/compositions.sh --batch=1000 --compile=on
#   N=100 sh docs/results/compositions.sh --compile=off                          # an hour on one CPU core
# GUIDE guides the network that ships (autoguidance); without it those points are left out. Samples, metrics.json and
# front.png go to samples/compositions-N. The same command again does what is missing.
# Not in the table: DiffRS after Restart, particles, UniPC or DMCMC, particles of UniPC or DMCMC (docs/equations.md,
# "What goes together").
set -e
N=${N:-500}
FIRST=${FIRST:-400000}  # the first seed; chains count from 0
WARMUP=${WARMUP:-10}  # rounds of DiffRS's warm-up
CHAINS=${CHAINS:-50}
PYTHON=${PYTHON:-python}  # draws and measures; torchrun --standalone --nproc_per_node=2 uses two cores
PLOT=${PLOT:-python}
SAMPLES=samples/compositions-$N
seeds=--seeds=$FIRST-$((FIRST + N - 1))
plain=--dg_weight_1st_order=0
both='--dg_weight_1st_order=1 --dg_weight_2nd_order=1'
images= lines=

# draw LINE NAME SCRIPT OPTIONS...: one point
draw() {
    lines=$lines${lines:+,}$1; name=$2; script=$3; shift 3
    $PYTHON "$script" --outdir="$SAMPLES/$name" "$@"
    images="$images --images=$SAMPLES/$name"
}

# guided NAME OPTIONS...: a sampler plain, with discriminator guidance, and with autoguidance
guided() {
    name=$1; shift
    draw plain "$name" generate.py "$seeds" $plain "$@"
    draw DG "$name-dg" generate.py "$seeds" --dg_weight_1st_order=1 "$@"
    [ -z "$GUIDE" ] || draw autoguidance "$name-auto" generate.py "$seeds" $plain --guiding_network="$GUIDE" "$@"
}

restart="--sampler=restart --restart=cifar10-43"
particles="--num_particles=4 --select"
rejection="--rej_percentile=0.75 --iter_warmup=$WARMUP"
guided heun18 --steps=18 "$@"
guided heun36 --steps=36 "$@"
guided restart43 $restart "$@"
guided unipc10 --solver=unipc --steps=10 "$@"
chains="generate_dmcmc.py --num_samples=$N --chains=$CHAINS --batch=$CHAINS --preset=cifar10-ours-20"
draw plain dmcmc20 $chains "$@"
draw DG dmcmc20-dg $chains $both "$@"
[ -z "$GUIDE" ] || draw autoguidance dmcmc20-auto $chains --guiding_network="$GUIDE" "$@"
draw DiffRS heun18-diffrs generate_diffrs.py "$seeds" --steps=18 $rejection "$@"
draw DiffRS heun36-diffrs generate_diffrs.py "$seeds" --steps=36 --max_backsteps=36 $rejection "$@"
# Resampled at noise levels of about 2, 1, 0.5 and 0.3.
draw particles heun18-particles generate.py "$seeds" --steps=18 $particles --resample_inds=9,10,11,12 "$@"
draw particles heun36-particles generate.py "$seeds" --steps=36 $particles --resample_inds=18,20,23,25 "$@"
draw particles restart43-particles generate.py "$seeds" $restart $particles "$@"
$PYTHON calc_metrics.py calc $images --metrics=fd,kid --num_samples="$N" --json="$SAMPLES/metrics.json"
$PLOT plot.py curve "$SAMPLES/metrics.json" --x=report.nfe.mean --lines="$lines" --out="$SAMPLES/front.png" \
    --xlabel="evaluations of the score network per image"
