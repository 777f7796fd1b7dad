#!/usr/bin/env bash
# Builds the guest's image, an initramfs: busybox, the kernel's virtio modules, Redis with its
# libraries, and the lab's own guest programs. The same inputs give the same image.
set -euo pipefail
programs=("$@")
cd "$(dirname "$0")/.."
. lab/common.sh
root=$LAB/guest-root

release=$(guest_release)
key=$(cat lab/image.sh lab/common.sh lab/init.sh "${programs[@]}" "$root/.unpacked" | sha256sum | cut -c1-16)
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

add_modules "$image" virtio_pci virtio_console virtio_net virtio_rng virtio_balloon \
  vsock_loopback
pack_initrd "$image" "$LAB/initrd.gz"
cp "$root/boot/vmlinuz-$release" "$LAB/vmlinuz"
printf '%s' "$release" >"$LAB/kernel-release"
printf '%s' "$key" >"$LAB/image.key"
