#!/usr/bin/env bash
# Everything that needs a GPU, the most valuable first. Without --part: parts 1 to 7, which stay under 9 minutes by
# their limits.
#
#   bash benchmarks/gpu.sh --dry-run            what would run, and how long each part may take
#   bash benchmarks/gpu.sh --out results/       all of 1 to 7
#   bash benchmarks/gpu.sh --part 8 --out DIR   one part; 8 and up are the longer lists
#
# PYTHON: the interpreter (default: .venv/bin/python, else python3). JOBS: processes of the tests (default: a CPU each).
# RELEASED: a checkout of the released implementation, for part 11. Each command is a process of its own, and writes its
# results as they come. A part that fails or runs over its limit does not stop the others; the exit code is 1 then.
# Afterwards: DIR/*.json to benchmarks/results, and python -m benchmarks.report.status.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

default_python=python3
[ -x .venv/bin/python ] && default_python=.venv/bin/python
PYTHON="${PYTHON:-$default_python}"
RELEASED="${RELEASED:-}"
out="" dry=0 only=""

usage() { sed -n '2,12p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; }

while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1; shift ;;
    --part) only="${2:?--part: expected a number}"; shift 2 ;;
    --out) out="${2:?--out: expected a folder}"; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "gpu.sh: expected --dry-run, --part N or --out DIR; got $1" >&2; exit 2 ;;
  esac
done
case "$only" in ""|[1-9]|1[0-4]) ;; *) echo "gpu.sh: --part: expected 1 to 14; got $only" >&2; exit 2 ;; esac
out="${out:-gpu-results}"

# part | expected seconds | limit in seconds | what
PARTS="1|60|120|graphs: captures and replays against eager runs, one after the other, up to the first failure
2|80|150|generate: S at batch 1, 50, 256 and 512: AR and decode apart, overlap, roof, images per joule
3|30|60|profile: the kernels of drawing and decoding S at batch 1, 50 and 512, and the time between them
4|25|50|overlap: a stream of S at batch 50, without, with equal streams, and with priority to drawing
5|30|60|ops of the default path: each spec's cases against baselines and floor
6|20|40|the head at small batch: one kernel beside many
7|25|50|decode: S at batch 256 in chunks of 64, 128 and 256, and with cuDNN's own choice of algorithms
8|200|400|GPU tests, one process a CPU; then those that want the GPU to themselves
9|100|300|compute-sanitizer: planted faults, then every op's small cases (memcheck, racecheck)
10|200|600|engine: each option beside none, by whole batches; steps; then all ops, those that torch.compile is beside last
11|500|900|baselines: the paper's protocol (S, batch 50, 1000 images) in turns with plain torch, torch.compile and the released implementation (needs RELEASED)
12|500|900|generate: S, M, L at batch 1, 8, 50 and 256; S at 128 and 1024; S-text; S with 8-bit weights, and with products in 8 bits
13|500|1000|train, encode and decode alone: both stages and text, images/s, memory, layers; compute-sanitizer's other tools
14|400|900|the gate: this revision against itself, and the same with ops"

# Options, preset and batches: results in a file of their own.
generate() { echo "$PYTHON -m benchmarks.suites.generate --device cuda --repeats 3 --json $out/generate-$1.json ${*:2}"; }
engine() { echo "$PYTHON -m benchmarks.suites.engine --preset S --device cuda --json $out/engine-$1.json ${*:2}"; }
ops() { echo "$PYTHON -m benchmarks.suites.ops --device cuda --repeats 20 --json $out/$1.json ${*:2}"; }
train() { echo "$PYTHON -m benchmarks.suites.train --stage $1 --preset $2 --device cuda --batch 32 --precision bf16 --json $out/train-$1-$2.json"; }
compare() { echo "$PYTHON -m benchmarks.cli compare HEAD HEAD --device cuda --rounds 10 --turns 4 --json $out/compare-$1.json ${*:2}"; }

JOBS="${JOBS:-$(nproc)}"
ALONE=(tests/benchmarks/test_idle.py tests/test_hardware.py)  # they measure
GRAPHS=(tests/engine/test_graph.py tests/engine/test_capture.py tests/engine/test_batches.py)
DEFAULT_PATH=(skinny_linear upsample_conv conv_bytes add_maps group_norm_silu sample_logits decode_attention local_attention add_layer_norm)
SLOW=tests/ops/test_nearest_code.py::test_on_a_gpu_ten_million_rows_of_a_real_encoder
gpu_tests() { echo "$PYTHON -m pytest -v --tb=short --continue-on-collection-errors -m gpu $*"; }

# The commands of a part, one a line.
commands() {
  case "$1" in
    1) gpu_tests -x "${GRAPHS[@]}" ;;
    2) generate S --preset S --batches 1 50 256 512 --baselines none ;;
    3) echo "$PYTHON -m benchmarks.studies.idle --preset S --batch 1 50 512 --kernels 25" ;;
    4) engine overlap --batch 50 --what stream --engine overlap=off overlap=on overlap=priority ;;
    5) ops ops-default-path ${DEFAULT_PATH[*]/#/--op } ;;
    6) echo "$PYTHON -m benchmarks.suites.head --preset S --device cuda --json $out/head.json" ;;
    7) engine decode --batch 256 --what decode --engine chunk=64 chunk=128 chunk=256 cudnn_benchmark ;;
    # Several processes, for most of the time is Triton's compiler and references on the CPU. -v: each outcome as it
    # comes, for over its limit there is no summary. One test file's missing import costs that file.
    8) gpu_tests -n "$JOBS" ${ALONE[*]/#/--ignore=} --deselect "$SLOW" tests
       gpu_tests "${ALONE[@]}" ;;
    9) echo "$PYTHON -m benchmarks.sanitizer --tool memcheck racecheck" ;;
    10) engine small --batch 1 8 --what draw --engine dependent_launch skip_query fused_norm dependent_launch,fused_norm fused_draw tables whole_head dependent_launch,whole_head
        engine large --batch 50 256 --what draw --engine skip_query fused_draw tables streamed_rows streamed_rows,fused_norm streamed_rows,fused_norm,dependent_launch
        engine largest --batch 512 --what draw --engine kv=int8
        echo "$PYTHON -m benchmarks.suites.steps --preset S --device cuda --dtype bf16 --batch 1 --steps 64 --options tables skip_query dependent_launch fused_norm"
        ops ops --all ;;
    11) generate S-paper --preset S --batch 50 --images 1000 --released "${RELEASED:-RELEASED}" --released-repeats 1 ;;
    12) generate sweep --preset S M L --batches 1 8 50 256 --baselines none
        generate S-large --preset S --batches 128 1024 --baselines none
        generate S-text --preset S-text --batches 50 --baselines none
        for numbers in int8 fp8; do
          generate "S-$numbers" --preset S --batches 1 50 256 --quantize "$numbers" --baselines none
          generate "S-$numbers-rows" --preset S --batches 50 256 --quantize "$numbers" --engine quantized_products=all --baselines none
        done ;;
    13) train 1 S; train 2 S; train 2 S-text
        echo "$PYTHON -m benchmarks.suites.encode --preset S --device cuda --batch 64 --compile --json $out/encode.json"
        echo "$PYTHON -m benchmarks.suites.generate --decode-only --device cuda --preset S --batch 50 --repeats 5 --json $out/decode-S-50.json"
        echo "$PYTHON -m benchmarks.sanitizer --tool initcheck synccheck"
        gpu_tests "$SLOW" ;;
    14) compare generate --preset S --batch 50; compare ops --suite ops ;;
  esac
}

chosen="${only:-1 2 3 4 5 6 7}"
field_of() { echo "$PARTS" | awk -F'|' -v part="$1" -v field="$2" '$1 == part { print $field }'; }
expected_of() { field_of "$1" 2; }
limit_of() { field_of "$1" 3; }
what_of() { field_of "$1" 4; }

if [ "$dry" = 1 ]; then
  total=0 expected=0
  for part in ${only:-1 2 3 4 5 6 7 8 9 10 11 12 13 14}; do
    [ -z "$only" ] && [ "$part" = 8 ] && echo "--- with --part only:"
    echo "part $part, about $(expected_of "$part") s, at most $(limit_of "$part") s: $(what_of "$part")"
    commands "$part" | sed 's/^/    /'
    case " $chosen " in *" $part "*) total=$((total + $(limit_of "$part"))) expected=$((expected + $(expected_of "$part"))) ;; esac
  done
  echo "about $expected s, at most $total s for part(s) $chosen. Guesses and limits: benchmarks/STATUS.md says what has run on a GPU."
  exit 0
fi

if [ "$only" = 11 ] && [ -z "$RELEASED" ]; then
  echo "gpu.sh: part 11 needs RELEASED=path/to/hqtransformer" >&2; exit 2
fi
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
  || { echo "gpu.sh: torch sees no GPU here; --dry-run shows what would run" >&2; exit 2; }
mkdir -p "$out"
export PYTHONUNBUFFERED=1  # what a killed program has said is in its part's log
summary="" failed=0
for part in $chosen; do
  echo "==> part $part: $(what_of "$part")"
  start=$SECONDS end=$((SECONDS + $(limit_of "$part"))) worst=0
  while read -r line; do
    left=$((end - SECONDS))
    echo "$line"
    # shellcheck disable=SC2086  # the lines are ours and split where they should
    if [ "$left" -le 0 ]; then code=124; else
      timeout -k 10 "$left" $line </dev/null 2>&1 | tee -a "$out/part-$part.log"; code=${PIPESTATUS[0]}
    fi
    [ "$code" -ne 0 ] && worst=$code
  done < <(commands "$part")
  case "$worst" in 0) word="ok" ;; 124|137) word="over its limit" ;; 3) word="NOT RUN: a program is absent" ;; *) word="FAILED ($worst)" ;; esac
  [ "$worst" -ne 0 ] && failed=1
  summary="$summary$part|$((SECONDS - start))|$word|$(what_of "$part")
"
done
files=$(ls "$out"/*.json 2>/dev/null)
# shellcheck disable=SC2086
[ -n "$files" ] && "$PYTHON" -m benchmarks.cli report $files --out "$out/report"
printf '%s' "$summary" >"$out/summary.txt"
"$PYTHON" -m benchmarks.report.parts "$out/summary.txt" "$out/gpu-parts.json"
echo; echo "part | seconds | outcome | what"
printf '%s' "$summary" | sed 's/|/ | /g'
exit "$failed"
