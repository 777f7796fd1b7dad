#!/usr/bin/env bash
# Builds the guest's image, an initramfs for each kernel: busybox, the kernel's virtio modules,
# Redis with its libraries, and the lab's own guest programs. The same inputs give the same image.
set -euo pipefail
programs=("$@")
cd "$(dirname "$0")/.."
. lab/common.sh
root=$LAB/guest-root
newer=$LAB/kernel-backports

inputs=(lab/image.sh lab/common.sh lab/init.sh "${programs[@]}" "$root/.unpacked" "$newer/.unpacked")
key=$(cat "${inputs[@]}" | sha256sum | cut -c1-16)
[ "$(cat "$LAB/image.key" 2>/dev/null)" != "$key" ] || exit 0
say 'building the guest image'

image=$LAB/image
rm -rf "$image"
mkdir -p "$image"/{bin,dev,etc,lib/modules,lib64,proc,run,sys,tmp,usr/bin,usr/lib,var}

install -m 755 "$root/bin/busybox" "$image/bin/busybox"
install -m 755 "${programs[@]}" "$image/bin/"
install -m 755 lab/init.sh "$image/init"

# Programs and every library that they load, found by the guest's own loader.
loader=$(readlink -f "$root"/lib*/x86_64-linux-gnu/ld-linux-x86-64.so.2)
libraries=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
add_program() {
  install -m 755 "$root/usr/bin/$1" "$image/usr/bin/$1"
  "$loader" --library-path "$libraries" --list "$root/usr/bin/$1" |
    awk '$2 == "=>" { print $3 }' | while read -r library; do
    install -m 755 "$library" "$image/usr/lib/"
  done
}
install -m 755 "$loader" "$image/lib64/ld-linux-x86-64.so.2"
add_program redis-check-rdb # what redis-server is a link to
ln -sf redis-check-rdb "$image/usr/bin/redis-server"
add_program redis-cli
add_program redis-benchmark

image_for() { # image_for ROOT SUFFIX: the image with the modules of the kernel unpacked there
  local release
  release=$(kernel_release "$1")
  rm -rf "$image/lib/modules"
  add_modules "$image" "$1" virtio_pci virtio_console virtio_net virtio_rng virtio_balloon \
    vsock_loopback
  pack_initrd "$image" "$LAB/initrd$2.gz"
  cp "$1/boot/vmlinuz-$release" "$LAB/vmlinuz$2"
  printf '%s' "$release" >"$LAB/kernel-release$2"
}
image_for "$root" ''
image_for "$newer" -backports
printf '%s' "$key" >"$LAB/image.key"
