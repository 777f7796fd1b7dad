#!/bin/busybox sh
# shellcheck shell=dash disable=SC2013 # words are what is wanted
# The guest's first process.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin LD_LIBRARY_PATH=/usr/lib
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t devtmpfs dev /dev
mkdir /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /run
while read -r module; do
  insmod "/lib/modules/$module"
done </lib/modules/order
hostname guest
ip link set lo up
for word in $(cat /proc/cmdline); do
  case $word in
    lab.ip=*)
      # The card appears when its driver has probed it.
      while [ ! -e /sys/class/net/eth0 ]; do usleep 10000; done
      ip addr add "${word#lab.ip=}" dev eth0
      ip link set eth0 up
      ;;
    lab.agent) unmoor-agent >/run/agent.log 2>&1 & ;;
  esac
done
lab-guest echo 7007 &
redis-server --save '' --appendonly no --protected-mode no --bind 0.0.0.0 \
  --daemonize yes --dir /run --logfile /run/redis.log
lab-guest control lab.0 &
until redis-cli ping >/dev/null 2>&1; do usleep 50000; done
echo BOOTED
while true; do sleep 3600; done
