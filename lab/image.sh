#!/usr/bin/env bash
# Builds the guest's image, an initramfs: busybox, the kernel's virtio modules, Redis with its
# libraries, and the lab's own guest programs. The same inputs give the same image.
set -euo pipefail
lab=$1
programs=$2
here=$(dirname "$0")
root=$lab/guest-root

kernel=$(basename "$root"/boot/vmlinuz-*)
release=${kernel#vmlinuz-}
key=$(cat "$0" "$here/init.sh" "$programs" "$root/.unpacked" | sha256sum | cut -c1-16)
[ "$(cat "$lab/image.key" 2>/dev/null)" != "$key" ] || exit 0
printf 'lab: building the guest image\n' >&2

image=$lab/image
rm -rf "$image"
mkdir -p "$image"/{bin,dev,etc,lib/modules,lib64,proc,run,sys,tmp,usr/bin,usr/lib,var}

install -m 755 "$root/bin/busybox" "$image/bin/busybox"
install -m 755 "$programs" "$image/bin/lab-guest"
install -m 755 "$here/init.sh" "$image/init"

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

# The modules in the order in which they load.
depmod -b "$root" "$release"
for module in virtio_pci virtio_console virtio_net virtio_rng virtio_balloon; do
  modprobe -d "$root" -S "$release" --show-depends "$module"
done | awk '$1 == "insmod" { print $2 }' | awk '!seen[$0]++' | while read -r module; do
  install -m 644 "$module" "$image/lib/modules/"
  basename "$module"
done >"$image/lib/modules/order"

# Nothing of the moment of building may get in.
find "$image" -exec touch -h -d @0 {} +
(cd "$image" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0) |
  gzip -n -6 >"$lab/initrd.gz.new"
mv "$lab/initrd.gz.new" "$lab/initrd.gz"
cp "$root/boot/$kernel" "$lab/vmlinuz"
printf '%s' "$release" >"$lab/kernel-release"
printf '%s' "$key" >"$lab/image.key"
