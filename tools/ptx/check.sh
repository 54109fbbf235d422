#!/usr/bin/env bash
# Assembles every kernel of pkg/kernel/cuda with ptxas for six targets and compares registers, spills and shared memory
# with bench/results/ptx.csv. It fails if ptxas refuses a kernel, if a figure grew, or if the table lists other kernels.
# ptxas comes from PyPI, in a virtual environment that is kept in CACHE, keyed by requirements.txt.
#
# It also fails if the machine code for sm_90 that is committed beside the text is not what ptxas makes of the text.
#
#   tools/ptx/check.sh CACHE           check
#   tools/ptx/check.sh CACHE update    write the table
#   tools/ptx/check.sh CACHE cubins    write the machine code, pkg/kernel/cuda/sm_90
set -euo pipefail
cd "$(dirname "$0")/../.."
export LC_ALL=C # for the order of files
targets="80 86 89 90 100 120"
committed=bench/results/ptx.csv
key=$(sha256sum <tools/ptx/requirements.txt | cut -c1-16)
kept="$1/tools/ptx-$key"
ptxas() { echo "$kept"/lib/python3*/site-packages/nvidia/cuda_nvcc/bin/ptxas; }
if [ ! -x "$(ptxas)" ]; then
  echo "install ptxas (kept as $kept)"
  rm -rf "$kept"
  python3 -m venv "$kept"
  "$kept/bin/pip" install --quiet --disable-pip-version-check --requirement tools/ptx/requirements.txt
  chmod +x "$(ptxas)"
fi
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
# cubin FILE OUT assembles a file for sm_90. The same ptxas makes the same bytes of it anywhere.
machine=pkg/kernel/cuda/sm_90
cubin() { "$(ptxas)" --gpu-name sm_90 --output-file "$2" "$1"; }
digest() { echo "$(sha256sum <"$1" | cut -d' ' -f1)  $2.cubin"; }
if [ "${2:-}" = cubins ]; then
  mkdir -p "$machine"
  rm -f "$machine"/*.cubin.gz
  for file in pkg/kernel/cuda/*.ptx; do
    cubin "$file" "$made/cubin"
    gzip -9 --no-name <"$made/cubin" >"$machine/$(basename "$file" .ptx).cubin.gz"
    digest "$made/cubin" "$(basename "$file" .ptx)" >>"$made/digests"
  done
  cp "$made/digests" "$machine/cubins.sha256"
  (cd pkg/kernel/cuda && sha256sum -- *.ptx) >"$machine/texts.sha256"
  echo "wrote $machine: $(wc -l <"$machine/texts.sha256") modules, $(cat "$machine"/*.gz | wc -c) bytes"
  exit
fi
for file in pkg/kernel/cuda/*.ptx; do
  cubin "$file" "$made/cubin"
  gzip --decompress --stdout "$machine/$(basename "$file" .ptx).cubin.gz" | cmp --silent - "$made/cubin" ||
    { echo "$machine: not the machine code of $file: run '$0 CACHE cubins' (make cubins)"; exit 1; }
  digest "$made/cubin" "$(basename "$file" .ptx)" >>"$made/digests"
done
cmp "$made/digests" "$machine/cubins.sha256" ||
  { echo "$machine/cubins.sha256: not the digests of the machine code: run '$0 CACHE cubins' (make cubins)"; exit 1; }
for target in $targets; do
  for file in pkg/kernel/cuda/*.ptx; do
    "$(ptxas)" --verbose --gpu-name "sm_$target" --output-file "$made/cubin" "$file" >"$made/log" 2>&1 ||
      { cat "$made/log"; echo "$file: ptxas refuses it for sm_$target"; exit 1; }
    awk -v target="$target" -v module="$(basename "$file" .ptx)" '
      /Compiling entry function/ { split($0, part, "\047"); name = part[2] }
      /bytes spill stores/ { match($0, /[0-9]+ bytes spill stores/); spills = substr($0, RSTART, RLENGTH) + 0 }
      /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); used = substr($0, RSTART + 5, RLENGTH - 5)
        shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
        print module "/" name, target, used, spills, shared
      }' "$made/log" >>"$made/figures"
  done
done
# One line a kernel: static shared memory in bytes, the most bytes spilled for a target, registers by target.
awk -v targets="$targets" '
  { registers[$1, $2] = $3; if ($4 > spills[$1]) spills[$1] = $4; if ($5 > shared[$1]) shared[$1] = $5; seen[$1] }
  END {
    n = split(targets, target, " ")
    for (k in seen) {
      line = k "," shared[k] + 0 "," spills[k] + 0
      for (i = 1; i <= n; i++) line = line "," registers[k, target[i]]
      print line
    }
  }' "$made/figures" | sort >"$made/rows"
{ echo "kernel,shared,spilled,$(sed 's/^/sm_/; s/ /,sm_/g' <<<"$targets")"; cat "$made/rows"; } >"$made/ptx.csv"
if [ "${2:-}" = update ]; then
  cp "$made/ptx.csv" "$committed"
  echo "wrote $committed: $(wc -l <"$made/rows") kernels"
  exit
fi
awk -F, '
  FNR == NR { if (FNR > 1) was[$1] = $0; next }
  FNR == 1 { split($0, column, ","); next }
  !($1 in was) { print $1 ": not in the table"; failed = 1; next }
  {
    split(was[$1], old, ",")
    for (i = 2; i <= NF; i++) if ($i + 0 > old[i] + 0) {
      print $1 ": " column[i] " grew from " old[i] " to " $i; failed = 1
    }
    delete was[$1]
  }
  END {
    for (k in was) { print k ": in the table, but there is no such kernel"; failed = 1 }
    exit failed
  }' "$committed" "$made/ptx.csv" ||
  { echo "run '$0 CACHE update' (make ptxtable) if that is meant, and commit $committed"; exit 1; }
echo "ptxcheck: $(wc -l <"$made/rows") kernels for $(wc -w <<<"$targets") targets"
