#!/usr/bin/env bash
# An old release beside this one, in both directions: `tests/releases.sh [COMMIT]`. Without a commit it is
# the last one whose agent spoke version 2 of its protocol, and whose unmoord threw QEMU's acknowledgement
# of the switchover away. `tests/releases.sh --build` only builds it, and prints where its programs are.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh

only_build=
[ "${1:-}" != --build ] || { only_build=yes; shift; }
commit=${1:-b1398fe}
folder=$PWD/target/old/$commit
programs=$folder/programs
if [ ! -e "$programs/unmoor-agent" ]; then
  say "building $commit"
  need libelf-dev zlib1g-dev
  rm -rf "$folder"
  mkdir -p "$folder"
  git archive "$commit" | tar -x -C "$folder"
  (
    cd "$folder"
    cargo build -q --release --locked -p unmoor
    RUSTFLAGS='-C target-feature=+crt-static' cargo build -q --release --locked -p unmoor-agent \
      --target x86_64-unknown-linux-gnu
  )
  mkdir -p "$programs"
  cp "$folder"/target/release/{unmoor,unmoord} "$programs/"
  cp "$folder"/target/x86_64-unknown-linux-gnu/release/unmoor-agent "$programs/"
fi
if [ -n "$only_build" ]; then
  printf '%s\n' "$programs"
  exit 0
fi
UNMOOR_OLD_RELEASE=$programs cargo test --release --locked -p unmoor-tests --test releases -- \
  --test-threads=1 --ignored
