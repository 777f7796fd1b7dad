#!/usr/bin/env bash
# Makes the lab ready: packages, QEMU 10 and 7.2 side by side, the guest's kernels and images.
# Safe to run at any time; does only what is missing. Everything but a few packages lands under
# target/lab.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh

[ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported"
[ "$(id -u)" = 0 ] || die "the lab makes network namespaces: run as root"
command -v apt-get >/dev/null || die "the lab is built from Debian packages: apt-get is needed"

lock_lab

# --- Packages on this system: tools, and with qemu-system-x86 the libraries that QEMU needs.
lab/tools.sh
need iproute2 openssl kmod cpio gzip util-linux procps qemu-system-x86
need chromium fonts-dejavu-core # a browser, for the report
need libfaketime                # clocks that jump
need systemd                    # looks at its units
# libvirt's daemon, not its service: the lab starts one on each of its hosts.
need libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
# Where the lab's daemons have folders of their own in their place.
mkdir -p /etc/libvirt /run/libvirt /var/{lib,log,cache}/libvirt
# libvirtd will not start without this user, whoever QEMU runs as.
getent group libvirt-qemu >/dev/null || addgroup --quiet --system libvirt-qemu
getent passwd libvirt-qemu >/dev/null ||
  adduser --quiet --system --no-create-home --ingroup libvirt-qemu libvirt-qemu

# --- Packages that are only unpacked. apt gets lists of its own, so that the system's sources
# stay as they are.
unpack() { # unpack SUITE FOLDER PACKAGE...: downloads and unpacks, if not done before
  local suite=$1 folder=$LAB/$2
  shift 2
  local key
  key=$(printf '%s\n' "$suite" "$@" | sha256sum | cut -c1-16)
  [ "$(cat "$folder/.unpacked" 2>/dev/null)" != "$key" ] || return 0
  say "fetching $* from $suite"
  rm -rf "$folder" "$folder.new"
  mkdir -p "$folder.new/.debs"
  suite_apt "$suite" apt-get update
  (cd "$folder.new/.debs" && suite_apt "$suite" apt-get download "$@")
  local deb
  for deb in "$folder.new"/.debs/*.deb; do
    dpkg-deb -x "$deb" "$folder.new"
  done
  rm -rf "$folder.new/.debs"
  printf '%s' "$key" >"$folder.new/.unpacked"
  mv "$folder.new" "$folder"
}

qemu_packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)
unpack "$VERSION_CODENAME-backports" qemu-10 "${qemu_packages[@]}"
unpack "$VERSION_CODENAME" qemu-7.2 "${qemu_packages[@]}"

guest_kernel() { # guest_kernel SUITE: the package with that suite's kernel for VMs
  suite_apt "$1" apt-cache depends linux-image-cloud-amd64 |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'
}

# The guest's kernel, and real programs with the libraries that they need.
if [ ! -e "$LAB/guest-packages" ]; then
  suite_apt "$VERSION_CODENAME" apt-get update
  kernel=$(guest_kernel "$VERSION_CODENAME")
  libraries=$(suite_apt "$VERSION_CODENAME" apt-cache depends --recurse --no-recommends \
    --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances redis-server redis-tools |
    grep -E '^lib[a-z0-9.+-]+$' | sort -u)
  printf '%s\n' "$kernel" busybox-static redis-server redis-tools "$libraries" >"$LAB/guest-packages.new"
  mv "$LAB/guest-packages.new" "$LAB/guest-packages"
fi
mapfile -t guest_packages <"$LAB/guest-packages"
unpack "$VERSION_CODENAME" guest-root "${guest_packages[@]}"

# A newer kernel for the same image.
if [ ! -s "$LAB/backports-kernel" ]; then
  suite_apt "$VERSION_CODENAME-backports" apt-get update
  guest_kernel "$VERSION_CODENAME-backports" >"$LAB/backports-kernel.new"
  mv "$LAB/backports-kernel.new" "$LAB/backports-kernel"
fi
unpack "$VERSION_CODENAME-backports" kernel-backports "$(cat "$LAB/backports-kernel")"

# --- The guest's image.
cargo=${CARGO:-cargo}
# Static, so that it runs in any guest; with a target of its own, so that the flag does not make
# cargo build everything else anew.
RUSTFLAGS='-C target-feature=+crt-static' "$cargo" build -q --release --locked -p lab-guest \
  -p unmoor-agent -p guest-procs --target x86_64-unknown-linux-gnu
lab/image.sh target/x86_64-unknown-linux-gnu/release/{lab-guest,unmoor-agent,guest-procs-probe}
