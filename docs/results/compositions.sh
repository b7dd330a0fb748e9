#!/bin/sh
# FD-CIFAR10 and KID of samplers with what improves them, on the networks that ship. From the root of the repository:
#   N=5000 GUIDE=path/to/an/early/snapshot.safetensors sh docs/results/compositions.sh --batch=1000 --compile=on
# GUIDE guides the network that ships (autoguidance); without it those points are left out. Samples and distances go to
# samples/compositions-N, a JSON per point, with the evaluations per image and the seconds in each folder's options.json;
# then the front of both is drawn. The same command again does what is missing.
# Not in the table: DiffRS after Restart, particles or UniPC (docs/equations.md, "What goes together").
set -e
N=${N:-500}
FIRST=${FIRST:-400000}  # the first seed
WARMUP=${WARMUP:-10}  # rounds of DiffRS's warm-up
PYTHON=${PYTHON:-python}
SAMPLES=samples/compositions-$N
seeds=--seeds=$FIRST-$((FIRST + N - 1))
plain=--dg_weight_1st_order=0

# draw NAME SCRIPT OPTIONS...: one point
draw() {
    name=$1; script=$2; shift 2
    [ ! -s "$SAMPLES/$name.json" ] || return 0
    $PYTHON "$script" --outdir="$SAMPLES/$name" $seeds "$@"
    $PYTHON fid_npzs.py --images="$SAMPLES/$name" --num_samples="$N" --batch=500 --json="$SAMPLES/$name.json"
}

# guided NAME OPTIONS...: a sampler plain, with discriminator guidance, and with autoguidance
guided() {
    name=$1; shift
    draw "$name" generate.py $plain "$@"
    draw "$name-dg" generate.py --dg_weight_1st_order=1 "$@"
    [ -z "$GUIDE" ] || draw "$name-auto" generate.py $plain --guiding_network="$GUIDE" "$@"
}

restart="--sampler=restart --restart=cifar10-43"
particles="--num_particles=4 --select"
guided heun18 --steps=18 "$@"
guided heun36 --steps=36 "$@"
guided restart43 $restart "$@"
guided unipc10 --solver=unipc --steps=10 "$@"
draw heun18-diffrs generate_diffrs.py --steps=18 --rej_percentile=0.75 --iter_warmup="$WARMUP" "$@"
draw heun36-diffrs generate_diffrs.py --steps=36 --max_backsteps=36 --rej_percentile=0.75 --iter_warmup="$WARMUP" "$@"
# Resampled at noise levels of about 2, 1, 0.5 and 0.3.
draw heun18-particles generate.py --steps=18 $particles --resample_inds=9,10,11,12 "$@"
draw heun36-particles generate.py --steps=36 $particles --resample_inds=18,20,23,25 "$@"
draw restart43-particles generate.py $restart $particles "$@"
$PYTHON plot.py curve "$SAMPLES"/*.json --x=report.nfe.mean --xlabel="evaluations of the score network per image" \
    --out="$SAMPLES/front.png"
