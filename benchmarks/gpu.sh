#!/usr/bin/env bash
# The benchmarks on one GPU, in eight minutes at most, and a table of them with the device's name:
#
#   [MODEL=FOLDER] [DATA=../shared/data] [PYTHON=python] bash benchmarks/gpu.sh [runs/gpu.md]
#
# MODEL is SmolLM2-135M-Instruct where none is named. PPO is compared where `python benchmarks/ppo.py` has made trl
# 1.12's environment in its cache folder. Without a GPU the small sizes run on the CPU: a trial of this script.
set -uo pipefail
cd "$(dirname "$0")/.."
table=${1:-runs/gpu.md}
model=${MODEL:-SmolLM2}
data=${DATA:-../shared/data}
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
one=${CUDA_VISIBLE_DEVICES-0}
export CUDA_VISIBLE_DEVICES=${one%%,*}  # trl would take all that there are
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
end=$((SECONDS + 450))
gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))') || exit 1
"$python" benchmarks/peak.py --model "$model" >"$work/peak" || exit 1

# row SECONDS NAME DATA SIZES…: a benchmark, and a line of what it printed last
row() {
  local limit=$1 name=$2 sizes=(--data "$3" "${@:4}") began=$SECONDS left=$((end - SECONDS)) said
  [ "$3" ] || sizes=("${@:4}")
  [ "$gpu" = 1 ] || { sizes=(${3:+--data "$3"} --small); left=600 limit=600; }
  if [ "$left" -lt 5 ]; then
    said="no time was left"
  elif timeout -k 5 $((left < limit ? left : limit)) "$python" "benchmarks/$name.py" --model "$model" "${sizes[@]}" \
    >"$work/log" 2>&1; then
    said=$(tail -n 1 "$work/log")
  else
    said="failed: $(tail -n 1 "$work/log")"
  fi
  printf '%s\t%s\t%s\n' "$name ${sizes[*]}" $((SECONDS - began)) "$said" | tee -a "$work/rows"
}

row 110 sampling "$data/hh-rlhf" --prompts 256 --new-tokens 64 --peers generate --rows 512 1024
row 60 reward_scoring "$data/hh-rlhf" --prompts 128
row 80 reward_training "$data/hh-rlhf" --steps 20
row 70 sft "$data" --steps 10
row 110 ppo_memory ""
if [ -f "$HOME/.cache/rlhf/trl-1.12/whole" ]; then
  row 60 ppo "$data/hh-rlhf" --iterations 4 --roles separate
  row 60 ppo "$data/hh-rlhf" --iterations 4 --roles shared
fi

mkdir -p "$(dirname "$table")"
"$python" - "$work" >"$table" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
peak = json.loads((folder / "peak").read_text().splitlines()[-1])
print(f"# Benchmarks on one {peak['device']}\n\nMatmul peak: {peak['gflops']} GFLOP/s.\n")
print("| benchmark | ours | peer | ratio | unit | share of the peak | seconds |\n|---|---|---|---|---|---|---|")
for line in (folder / "rows").read_text().splitlines():
    command, seconds, said = line.split("\t", 2)
    try:
        found = json.loads(said)
        share = found.get("peak_share", found.get("peak_shares"))
        cells = [*(found[name] for name in ("ours", "peer", "ratio", "unit")), share]
    except ValueError:
        cells = [said.replace("|", " ")[:200], "", "", "", ""]
    print("|", " | ".join(map(str, [command, *cells, seconds])), "|")
PYTHON
cat "$table"
