# Sourced by the scripts beside it, which set SAMPLES: the points of a picture, drawn, measured and shown.
N=${N:-300}  # images of a block
BLOCKS=${BLOCKS:-1}
PYTHON=${PYTHON:-python}  # draws and measures; torchrun --standalone --nproc_per_node=2 uses two cores
PLOT=${PLOT:-python}
ALL=$((BLOCKS * N))
folders= images= lines=

# draw LINE NAME SCRIPT OPTIONS...: one point, a folder of samples. ONLY="NAME NAME ..." leaves the others out, except
# those that are there already.
draw() {
    line=$1; name=$2; script=$3; shift 3
    case " ${ONLY:-$name} " in
        *" $name "*) $PYTHON "$script" --outdir="$SAMPLES/$name" "$@";;
        *) [ -d "$SAMPLES/$name" ] || return 0;;
    esac
    folders="$folders $SAMPLES/$name"
    images="$images --images=$SAMPLES/$name"
    lines=$lines${lines:+,}$line
}

# measure [PICTURE]: metrics.json, and a picture of all points against evaluations of the score network per image
measure() {
    $PYTHON calc_metrics.py calc $images --metrics=fd,kid --num_samples="$N" --blocks="$BLOCKS" \
        --json="$SAMPLES/metrics.json"
    [ -z "$1" ] || $PLOT plot.py curve "$SAMPLES/metrics.json" --x=report.nfe.mean --lines="$lines" --out="$SAMPLES/$1" \
        --xlabel="evaluations of the score network per image"
}
