#!/usr/bin/env bash
# Keeps of what fuzzing has found the smallest set of inputs that reaches the same code, for everybody:
# fuzz/keep.sh [TARGET...], after fuzz/run.sh. `make test` runs what is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(stream return_path wire stripes pack guest destination source monitor)

mkdir -p fuzz/corpus
for target in "${targets[@]}"; do
  kept=$(mktemp -d)
  # Short ones: what only a long input reaches is not worth its place.
  "target/fuzz/x86_64-unknown-linux-gnu/release/$target" -merge=1 -max_len=8192 \
    "$kept" "target/fuzz-corpus/$target" >/dev/null 2>&1
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$kept" -c . |
    gzip -9 --no-name >"fuzz/corpus/$target.tar.gz"
  echo "$target: $(find "$kept" -type f | wc -l) inputs, $(stat -c %s "fuzz/corpus/$target.tar.gz") bytes"
  rm -r "$kept"
done
