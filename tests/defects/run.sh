#!/usr/bin/env bash
# Whether the tests can fail: each defect here is put into a copy of the sources, where the simulation
# and an end-to-end test must find it.
#
#   tests/defects/run.sh [NAME...]
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
copy=$root/target/defects/tree
results=$root/target/results/defects.d
logs=$root/target/defects/logs

# DEFECT: what of the simulation finds it, and which end-to-end test.
declare -A simulation=(
  [lost-page]=memory_is_equal_and_one_copy_runs_whatever_happens
  [unproven-commit]=a_corrupt_page_never_runs
)
declare -A end_to_end=(
  [lost-page]="moves qemu_10_to_10"
  [unproven-commit]="errors a_corrupt_byte_on_the_way_is_found"
)
defects=("$@")
[ ${#defects[@]} -gt 0 ] || defects=(lost-page unproven-commit)

# The lab's provisions are the same; what is built is not. Faster to build, and no less defective.
mkdir -p "$copy/target" "$results" "$logs"
ln -sfn "$root/target/lab" "$copy/target/lab"
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16

fresh_copy() {
  find "$copy" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
  # All of it is new: what was built of a defect before must not count.
  git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -xmC "$copy"
}

finds() { # finds WHAT COMMAND...: the command must fail as a failing test does
  local what=$1 log=$logs/$defect.$1.log
  shift
  if "$@" >"$log" 2>&1; then
    echo "defect $defect: NOT FOUND by $what"
    return 1
  fi
  # A build that fails finds nothing.
  grep -q '^test result: FAILED' "$log" || {
    tail -n 30 "$log"
    echo "defect $defect: $what did not come to a result"
    return 1
  }
  echo "defect $defect: found by $what"
}

missed=0
for defect in "${defects[@]}"; do
  fresh_copy
  (
    cd "$copy"
    patch --quiet --strip=1 <"tests/defects/$defect.patch"
    cargo build --quiet --release --locked -p unmoor --features unmoor/libvirt -p lab
  )
  read -r file name <<<"${end_to_end[$defect]}"
  cd "$copy"
  finds simulation cargo test --release --locked -p migrate --test simulation \
    "${simulation[$defect]}" || missed=$((missed + 1))
  finds end-to-end cargo test --release --locked -p unmoor-tests --test "$file" "$name" ||
    missed=$((missed + 1))
  cd "$root"
done
printf '{"defects": %d, "looks": %d, "missed": %d}\n' \
  ${#defects[@]} $((2 * ${#defects[@]})) "$missed" >"$results/found.json"
# Gathers it with the machine and the versions.
cargo run -q --release --locked -p lab --bin lab-results -- defects
[ "$missed" = 0 ]
