#!/usr/bin/env bash
# A newcomer's first hour on Debian 13: in a fresh root, with Rust from this machine and nothing else, the
# README's first command, the lint, and some end-to-end tests. How long each takes is kept in
# target/results/newcomer.json.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
check_system
check_root
. lab/archive.sh
need mmdebstrap util-linux

suite=trixie
RESULTS_FOLDER=$PWD/target/results
folder=$PWD/target/newcomer
root=$folder/root
rustup=${RUSTUP_HOME:-$HOME/.rustup}
cargo=${CARGO_HOME:-$HOME/.cargo}

# What a minimal Debian 13 has, with the tools that any project of this kind is cloned and built with.
key=$suite-1
if [ "$(cat "$folder/key" 2>/dev/null)" != "$key" ]; then
  say "installing a fresh $suite"
  rm -rf "$folder"
  mkdir -p "$folder"
  mmdebstrap --mode=root --variant=minbase --format=directory \
    --include=make,git,gcc,libc6-dev,ca-certificates \
    --aptopt='Apt::Install-Recommends "false"' \
    "$suite" "$root" "$(suite_source "$suite")" >"$folder/log" 2>&1 ||
    die "mmdebstrap failed: see $folder/log"
  printf '%s' "$key" >"$folder/key"
fi
# How this machine reaches its mirror.
cp -a /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
# A clone, as everybody's; what an earlier one built and fetched is gone.
rm -rf "$root/root/checkout"
git clone --quiet --no-hardlinks . "$root/root/checkout"

within() { # within COMMAND...: in that root, in a mount namespace of its own
  # shellcheck disable=SC2016 # the inner shell's
  unshare --mount --fork --pid --kill-child bash -euc '
    root=$1 rustup=$2 cargo=$3
    shift 3
    mount --make-rprivate /
    mount --rbind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mkdir -p "$root/rust/rustup" "$root/rust/cargo"
    mount --bind -o ro "$rustup" "$root/rust/rustup"
    mount --bind "$cargo" "$root/rust/cargo"
    exec chroot "$root" env -i HOME=/root USER=root TERM=dumb RUSTUP_HOME=/rust/rustup \
      CARGO_HOME=/rust/cargo PATH=/rust/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      bash -euc "cd /root/checkout && $*"
  ' within "$root" "$rustup" "$cargo" "$@"
}

rows=()
timed() { # timed NAME COMMAND: how long it takes; ends all if it fails
  local begin=$SECONDS
  say "on $suite: $2"
  within "$2" >"$folder/$1.log" 2>&1 || die "$2 fails on $suite: see $folder/$1.log"
  rows+=("$(printf '{"command": "%s", "seconds": %d}' "$2" $((SECONDS - begin)))")
  say "on $suite: $2 took $((SECONDS - begin)) s"
}

timed demo 'make demo'
timed lint 'make lint'
timed setup 'make setup'
timed tests 'cargo build --release --locked -q -p unmoor --features unmoor/libvirt -p lab && cargo test --release --locked -q -p unmoor-tests --test moves --test stop_copy --test libvirt -- --test-threads=1'

mkdir -p "$RESULTS_FOLDER"
{
  printf '[\n'
  (IFS=,; printf '%s' "${rows[*]}")
  printf '\n]\n'
} >"$RESULTS_FOLDER/newcomer.json"
say "times are in $RESULTS_FOLDER/newcomer.json"
