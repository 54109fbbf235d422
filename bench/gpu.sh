#!/usr/bin/env bash
# Checks and times the CUDA kernels on a GPU, in six minutes at most, on a machine that has this repository and perhaps
# PyTorch, but no Go. Results go to $OUT.
#
#   bench/gpu.sh build       where Go is: makes bin/gpu, which has to be carried to the machine with the GPU
#   bench/gpu.sh run         there: GPU=cuda:0 (the default) names the device, OUT the folder of the results
#   GPU=twin bench/gpu.sh run   the same on the simulated device, with small shapes: its times say nothing
#
# What runs: the driver's contract, the contract of the kernel set, products of adapters, the tiny models against the
# CPU set, one result for batches of 1 to 16, chunks and 1 to 4 stages on one device, graphs on and off, also of models
# with experts and of rows with adapters, a tiny training run against the reference and over layouts, and then the
# products of a model of the shape of Llama 3 8B beside PyTorch's. A step that runs out of time is cut, and the others
# still run.
set -uo pipefail
cd "$(dirname "$0")/.."
gpu=${GPU:-cuda:0}
bin=$PWD/bin/gpu
slow=1 # factor of the limits of steps

build() {
  set -e
  mkdir -p "$bin/models"
  export CGO_ENABLED=0
  for p in driver:pkg/kernel/cuda/driver/libcuda set:pkg/kernel/cuda model:pkg/model shard:services/shard; do
    ${GO:-go} test -c -tags cuda -trimpath -ldflags "-s -w" -o "$bin/${p%%:*}.test" "./${p#*:}"
  done
  # The tests of models that are not tiny find none of theirs.
  rm -rf "$bin/models/tiny" && cp -r "${LAMINA_SHARED:?names the folder that has models/tiny}/models/tiny" "$bin/models/"
  gzip -f "$bin"/*.test # which makes them a third as large for the way
  du -sh "$bin"
}

# step NAME SECONDS FOLDER COMMAND... runs a command with a limit and adds its result to the file of results.
step() {
  local name=$1 limit=$2 dir=$3 from left status
  shift 3
  from=$(date +%s%N)
  left=$((deadline - from / 1000000000))
  if [ "$left" -le 0 ]; then
    status=skipped
  else
    (cd "$dir" && timeout "$((left < slow * limit ? left : slow * limit))" "$@") > "$OUT/$name.log" 2>&1
    case $? in 0) status=passed ;; 124) status="out of time" ;; *) status=failed ;; esac
    # A test that is skipped has shown nothing.
    if [ "$status" = passed ] && grep -q '^--- SKIP' "$OUT/$name.log"; then status=skipped; fi
  fi
  [ "$status" = passed ] || worst=1
  results+=("$(printf '{"step": "%s", "status": "%s", "seconds": %d.%03d}' "$name" "$status" \
    $((($(date +%s%N) - from) / 1000000000)) $((($(date +%s%N) - from) / 1000000 % 1000)))")
  echo "$name: $status"
}

run() {
  : "${OUT:?names the folder of the results}"
  mkdir -p "$OUT"
  OUT=$(cd "$OUT" && pwd)
  gunzip -f "$bin"/*.test.gz 2> /dev/null # unless they are unpacked already
  [ -x "$bin/set.test" ] || { echo "bin/gpu is missing: run bench/gpu.sh build where Go is, and carry it here"; exit 2; }
  deadline=$(($(date +%s) + ${LIMIT:-350}))
  worst=0 results=()
  export LAMINA_SHARED=$bin
  if [ "$gpu" = twin ]; then # which is as slow as the machine is busy
    unset LAMINA_GPU LAMINA_SLOW
    slow=20 deadline=$((deadline + 7200))
  else
    export LAMINA_GPU=$gpu LAMINA_SLOW=1
    nvidia-smi > "$OUT/nvidia-smi.log" 2>&1
    step driver 60 pkg/kernel/cuda/driver/libcuda "$bin/driver.test" -test.v -test.run '^TestDriver_KeepsTheContract$'
  fi
  local v=(-test.v -test.timeout 0 -test.run)
  step contract 90 pkg/kernel/cuda "$bin/set.test" "${v[@]}" "${CONTRACT:-^TestSet_KeepsTheContract\$}"
  step adapters 30 pkg/kernel/cuda "$bin/set.test" "${v[@]}" '^TestLowRanks_'
  step models 90 pkg/model "$bin/model.test" "${v[@]}" "${MODELS:-^TestStage_OnAGPU\$}"
  step one-result 90 pkg/model "$bin/model.test" "${v[@]}" '^TestStage_OneResultOnAGPU$'
  step graphs 60 pkg/model "$bin/model.test" "${v[@]}" '^TestStep_(AGraphGives|AdaptersInAGraphGive)'
  step train 60 services/shard "$bin/shard.test" "${v[@]}" '^TestTrain_(OnADevice|LayoutsOfADevice|MemoryOfADevice)$'
  LAMINA_GPU_TIMES=$OUT/times.json step times 120 pkg/kernel/cuda "$bin/set.test" "${v[@]}" \
    '^TestTimes_OfTheProductsOfAModel$'
  if [ "$gpu" != twin ] && [ -s "$OUT/times.json" ] && python3 -c 'import torch' 2> /dev/null; then
    step torch 90 . python3 bench/gpu_torch.py "$OUT/times.json" "$OUT/torch.json"
  fi
  {
    printf '{"gpu": "%s", "steps": [\n' "$gpu"
    local i
    for i in "${!results[@]}"; do printf '  %s%s\n' "${results[i]}" "$([ "$i" -lt $((${#results[@]} - 1)) ] && echo ,)"; done
    printf '], "times": %s, "torch": %s}\n' "$(cat "$OUT/times.json" 2> /dev/null || echo null)" \
      "$(cat "$OUT/torch.json" 2> /dev/null || echo null)"
  } > "$OUT/gpu.json"
  exit "$worst"
}

case ${1:-} in
  build) build ;;
  run) run ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
