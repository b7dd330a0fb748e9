#!/bin/sh
# Discriminators of the same images, three trainings of each: cross-entropy (the last epoch, the best, and the mean of
# three), the loss that fits the gradient, and LoRA adapters; FD-CIFAR10 of guidance with each, on the networks that
# ship. From the root of the repository:
#   N=5000 IMAGES=50000 EPOCHS=25 SHORT=25 STEPS=18 TRAINING=--batch_size=512 \
#       sh docs/results/discriminators.sh --batch=1000 --compile=on                  # on a GPU
#   N=160 sh docs/results/discriminators.sh --compile=off                            # an hour and a half on one CPU core
# Samples, trainings and studies go to samples/discriminators-IMAGES. The same command again does what is missing.
set -e
N=${N:-160}  # images of a row
IMAGES=${IMAGES:-1000}  # real images of a training, and as many generated ones
EPOCHS=${EPOCHS:-5}  # of cross-entropy
SHORT=${SHORT:-2}  # of the trainings that cost several times as much; ranks are compared after these
STEPS=${STEPS:-5}  # of Heun, for the images to train on and for those that are measured
WEIGHT=${WEIGHT:-3}
TRAIN=${TRAIN:-data/cifar10-train.zip}
TRAINING=${TRAINING:---batch_size=32 --lr=1e-3}  # more options of train.py
PYTHON=${PYTHON:-python}
RUNS=samples/discriminators-$IMAGES

# train NAME OPTIONS...: three trainings
train() {
    name=$1; shift
    for seed in 0 1 2; do
        $PYTHON train.py --savedir="$RUNS/$name-$seed" --gendir="$RUNS/vanilla" --datadir="$TRAIN" --num_data="$IMAGES" \
            --network=checkpoints/demo/score.safetensors --width=64 --seed=$seed $TRAINING \
            --pretrained_classifier_ckpt=checkpoints/demo/classifier.safetensors "$@"
    done
}

# study NAME KIND OPTIONS...: one study of such trainings
study() {
    name=$1; kind=$2; shift 2
    $PYTHON study.py "$kind" --outdir="$RUNS/$name" --num_samples="$N" --steps="$STEPS" "$@"
}

# runs NAME...: the options that name three trainings of each
runs() {
    for name in "$@"; do
        for seed in 0 1 2; do echo "--training=$RUNS/$name-$seed"; done
    done
}

# mean NAME: the options that make one discriminator of three
mean() {
    for seed in 0 1 2; do echo "--discriminator_ckpt=$RUNS/$1-$seed/best.pt"; done
}

$PYTHON generate.py --outdir="$RUNS/vanilla" --seeds=0-$((IMAGES - 1)) --steps="$STEPS" --dg_weight_1st_order=0 "$@"
train bce --epoch="$EPOCHS"
train score --loss=score --epoch="$SHORT"
train rank8 --lora_rank=8 --epoch="$SHORT"
train rank32 --lora_rank=32 --epoch="$SHORT"

guided=--dg_weight_1st_order=$WEIGHT
study best repeats $(runs bce) --unguided $guided "$@"
study last repeats $(runs bce) --file=last --unguided $guided "$@"
study score repeats $(runs score) --unguided $guided "$@"
study ranks ranks $(runs bce rank8 rank32) --file="$SHORT" --unguided $guided "$@"
study mean weights $(mean bce) --dg_weight_1st_order=0,"$WEIGHT" "$@"
study shipped weights --dg_weight_1st_order=0,"$WEIGHT" "$@"
