#!/bin/sh
# Every metric, with its error, of the networks that ship: from noise, with discriminator guidance, by rejection; and
# the report page of the three. From the root of the repository:
#   N=10000 BLOCKS=3 sh docs/results/evaluation.sh --batch=1000 --compile=on     # on a GPU
#   N=200 BLOCKS=3 sh docs/results/evaluation.sh --compile=off                   # about an hour on one CPU core
# TRAIN=data/cifar10-train.zip adds the nearest training images. Samples, metrics.json, one-block.json (of all images) and
# report.html go to samples/evaluation-BLOCKSxN. The same command again does what is missing.
set -e
. "$(dirname "$0")/points.sh"
FIRST=${FIRST:-700000}  # the first seed
WARMUP=${WARMUP:-10}  # rounds of DiffRS's warm-up
SAMPLES=samples/evaluation-${BLOCKS}x$N
seeds=--seeds=$FIRST-$((FIRST + ALL - 1))

draw vanilla vanilla generate.py "$seeds" --dg_weight_1st_order=0 "$@"
draw DG dg3 generate.py "$seeds" --dg_weight_1st_order=3 "$@"
draw DiffRS diffrs0.9 generate_diffrs.py "$seeds" --rej_percentile=0.9 --iter_warmup="$WARMUP" "$@"
$PYTHON calc_metrics.py calc $images --num_samples="$N" --blocks="$BLOCKS" --json="$SAMPLES/metrics.json"
$PYTHON calc_metrics.py calc $images --num_samples=$ALL --json="$SAMPLES/one-block.json"
$PLOT plot.py report $folders "$SAMPLES/metrics.json" ${TRAIN:+--neighbours="$TRAIN"} --out="$SAMPLES/report.html"
