#!/usr/bin/env bash
# Makes the lab ready: packages, and of kernel, QEMU and libvirt both what the lab is used to and the
# newest that there is. lab/versions.sh adds what lies between. Safe to run at any time; does only what
# is missing. Everything but a few packages lands under target/lab. To look for newer versions, remove
# target/lab/versions.tsv.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
check_system
check_root
. lab/archive.sh

lock_lab

# --- Packages on this system: tools only. What the lab runs has libraries of its own.
lab/tools.sh
need iproute2 openssl kmod cpio gzip xz-utils zstd util-linux procps
need chromium fonts-dejavu-core # a browser, for the report
need libfaketime                # clocks that jump
need systemd                    # looks at its units
# Where the lab's libvirt daemons have folders of their own in their place.
mkdir -p /etc/libvirt /run/libvirt /var/{lib,log,cache}/libvirt
# libvirtd will not start without this user, whoever QEMU runs as.
getent group libvirt-qemu >/dev/null || groupadd --system libvirt-qemu
getent passwd libvirt-qemu >/dev/null ||
  useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
    --gid libvirt-qemu libvirt-qemu

# --- What the lab runs.
provide_or_die guest 12
provide_or_die kernel 6.1
provide_or_die kernel 6.12
provide_or_die qemu 7.2
provide_or_die qemu 10.0
provide_or_die libvirt 9.0
# These change from day to day, and some day one may be broken in the archive.
provide kernel newest-cloud
provide qemu newest
provide libvirt newest

# --- The guest's image.
cargo=${CARGO:-cargo}
# Static, so that it runs in any guest; with a target of its own, so that the flag does not make
# cargo build everything else anew.
guest_build() {
  RUSTFLAGS='-C target-feature=+crt-static' "$cargo" build -q --release --locked \
    --target x86_64-unknown-linux-gnu "$@"
}
# An agent whose probes fail when they are told to, beside the one that people run.
programs=target/x86_64-unknown-linux-gnu/release
guest_build -p unmoor-agent --features unmoor-agent/faults
cp -p "$programs/unmoor-agent" "$programs/unmoor-agent-faults"
guest_build -p lab-guest -p unmoor-agent -p guest-procs
lab/image.sh
