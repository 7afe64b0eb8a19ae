#!/usr/bin/env bash
# Makes the results beside it again, or goes on with them: 147 runs, about an hour and a half on two idle cores.
# It needs Debian's package dataset-fashion-mnist, or the idx files and `--data.path FOLDER` in the commands below.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
jaxdist=.venv/bin/jaxdist
results=experiments/codecs
sgd='sgd(learning_rate=0.05, momentum=0.9, nesterov=True)'
adamw='adamw(learning_rate=3e-3)'

images=()
for mean in 'mean()' 'mean(codec=int8(), feedback=True)' 'mean(codec=int4(), feedback=True)' 'mean(codec=int4())' \
    'mean(codec=int2(), feedback=True)' 'mean(codec=int2())' 'mean(codec=sign(block=64), feedback=True)' \
    'mean(codec=sign(block=64))' 'mean(codec=top_k(k=41), feedback=True)' \
    'mean(codec=power_sgd(rank=4), feedback=True)' 'mean(codec=power_sgd(rank=2), feedback=True)'; do
    images+=(--update "$mean | $sgd")
done
images+=(--update 'ema(0.9, debias=False) | mean(codec=majority()) | sgd(learning_rate=1e-3)')

text=()
for mean in 'mean()' 'mean(codec=int4(), feedback=True)' 'mean(codec=int2(), feedback=True)' \
    'mean(codec=sign(block=64), feedback=True)' 'mean(codec=sign(block=64))' \
    'mean(codec=power_sgd(rank=4), feedback=True)'; do
    text+=(--update "$mean | $adamw")
done

"$jaxdist" compare configs/codecs_images.py --seeds 3 --out "$results/images-8" --title 'Codecs on Fashion-MNIST, 8 workers'
"$jaxdist" compare configs/codecs_text.py --seeds 3 --out "$results/text-8" \
    --title "Codecs on the standard library's sources, 8 workers"
"$jaxdist" compare configs/codecs_images.py --seeds 3 --mesh.workers 16 "${images[@]}" --out "$results/images-16" \
    --title 'Codecs on Fashion-MNIST, 16 workers'
"$jaxdist" compare configs/codecs_text.py --seeds 3 --mesh.workers 16 "${text[@]}" --out "$results/text-16" \
    --title "Codecs on the standard library's sources, 16 workers"
