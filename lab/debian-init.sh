#!/bin/busybox sh
# shellcheck shell=dash
# The first process of the Debian guest: lays memory over the read-only root on /dev/vda, where
# writes then go, and hands over to systemd. Should a step fail, the kernel panics, which ends QEMU.
set -e
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
  insmod "/lib/modules/$module"
done </lib/modules/order
# The disk appears when its driver has probed it.
while [ ! -e /dev/vda ]; do usleep 10000; done
mount -t squashfs -o ro /dev/vda /base
mount -t tmpfs -o mode=755 rw /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/base,upperdir=/rw/upper,workdir=/rw/work root /root
for folder in proc sys dev; do
  mount --move "/$folder" "/root/$folder"
done
exec switch_root /root /sbin/init
