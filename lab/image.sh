#!/usr/bin/env bash
# Builds the guest's image, an initramfs for each kernel that is here: busybox, the kernel's virtio
# modules, Redis with its libraries, and the lab's own guest programs. The same inputs give the same image.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
root=$LAB/guest-12
programs=(target/x86_64-unknown-linux-gnu/release/{lab-guest,unmoor-agent,unmoor-agent-faults,guest-procs-probe})

image=$LAB/image
lay_out() { # everything but the modules
  rm -rf "$image"
  mkdir -p "$image"/{bin,dev,etc,lib/modules,lib64,proc,run,sys,tmp,usr/bin,usr/lib,var}

  install -m 755 "$root/usr/bin/busybox" "$image/bin/busybox"
  install -m 755 "${programs[@]}" "$image/bin/"
  install -m 755 lab/init.sh "$image/init"

  # Programs and every library that they load, found by the guest's own loader.
  libraries=$root/usr/lib/x86_64-linux-gnu
  loader=$libraries/ld-linux-x86-64.so.2
  install -m 755 "$loader" "$image/lib64/ld-linux-x86-64.so.2"
  add_program redis-check-rdb # what redis-server is a link to
  ln -sf redis-check-rdb "$image/usr/bin/redis-server"
  add_program redis-cli
  add_program redis-benchmark
}

add_program() {
  install -m 755 "$root/usr/bin/$1" "$image/usr/bin/$1"
  "$loader" --inhibit-cache --library-path "$libraries" --list "$root/usr/bin/$1" |
    awk '$2 == "=>" { print $3 }' | while read -r library; do
    install -m 755 "$library" "$image/usr/lib/"
  done
}

inputs=(lab/image.sh lab/common.sh lab/init.sh "${programs[@]}" "$root/.key")
contents=$(cat "${inputs[@]}" | sha256sum)
laid_out=
for kernel in "$LAB"/kernel-*; do
  spec=${kernel##*/kernel-}
  key=$(printf '%s' "$contents" | cat - "$kernel/.key" | sha256sum | cut -c1-16)
  [ "$(cat "$LAB/initrd-$spec.key" 2>/dev/null)" != "$key" ] || continue
  say "building the guest's image for kernel $spec"
  [ -n "$laid_out" ] || lay_out
  laid_out=yes
  rm -rf "$image/lib/modules" "$LAB/initrd-$spec.key"
  add_modules "$image" "$kernel" virtio_pci virtio_console virtio_net virtio_rng virtio_balloon \
    vsock_loopback
  pack_initrd "$image" "$LAB/initrd-$spec.gz"
  printf '%s' "$key" >"$LAB/initrd-$spec.key"
done
rm -rf "$image"
