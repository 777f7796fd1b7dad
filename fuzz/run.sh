#!/usr/bin/env bash
# Coverage-guided fuzzing of every parser: fuzz/run.sh [SECONDS [TARGET...]]
# Needs nothing but stable Rust and a C++ compiler: the coverage flags that cargo-fuzz sets are
# given to the compiler here.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(stream return_path wire stripes pack guest destination source monitor)

triple=x86_64-unknown-linux-gnu
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target of its own, so that build scripts are not instrumented.
cargo build -q --release --locked --manifest-path fuzz/Cargo.toml --target "$triple" \
  --target-dir target/fuzz $(printf -- '--bin %s ' "${targets[@]}")
RUSTFLAGS='' cargo run -q --release --locked --manifest-path fuzz/Cargo.toml \
  --target-dir target/fuzz --bin seeds -- target/fuzz-corpus

# What earlier runs have found, here or elsewhere.
for target in "${targets[@]}"; do
  [ ! -e "fuzz/corpus/$target.tar.gz" ] ||
    tar -xzf "fuzz/corpus/$target.tar.gz" -C "target/fuzz-corpus/$target"
done

rm -rf target/results/fuzz.d
mkdir -p target/results/fuzz.d target/fuzz-artifacts
findings=0
for target in "${targets[@]}"; do
  log=target/fuzz-artifacts/$target.log
  # Inputs that earlier runs found stay, as nothing else may reach them again: their names are hashes.
  artifacts=target/fuzz-artifacts/$target-
  if "target/fuzz/$triple/release/$target" "target/fuzz-corpus/$target" \
    -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
    -dict=fuzz/qemu.dict -artifact_prefix="$artifacts" -print_final_stats=1 >"$log" 2>&1; then
    found=0
  else
    found=1
    findings=$((findings + 1))
    tail -n 40 "$log"
  fi
  executions=$(awk '/stat::number_of_executed_units/ { print $2 }' "$log")
  per_second=$(awk '/stat::average_exec_per_sec/ { print $2 }' "$log")
  # An input of the corpus that crashes leaves no such line, which must not end the script here.
  edges=$(awk 'match($0, /cov: [0-9]+/) { n = substr($0, RSTART + 5, RLENGTH - 5) } END { print n }' "$log")
  echo "fuzz $target: ${executions:-0} executions, ${edges:-0} edges, $found findings"
  printf '{"seconds": %s, "executions": %s, "per_second": %s, "edges": %s, "findings": %s}' \
    "$seconds" "${executions:-0}" "${per_second:-0}" "${edges:-0}" "$found" >"target/results/fuzz.d/$target.json"
done
# Gathers them with the machine and the versions.
RUSTFLAGS='' cargo run -q --release --locked -p lab --bin lab-results -- fuzz
[ "$findings" = 0 ]
