#!/usr/bin/env bash
# Builds a Debian guest: a root file system with systemd and real services, and the initrd that
# starts it. After lab/setup.sh, whose kernel and guest programs it takes. Everything but two
# packages lands under target/lab; what has not changed is not built again.
#   lab/debian.sh 12|13
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
check_system
check_root
. lab/archive.sh

number=${1:-}
case $number in
  12) suite=bookworm ;;
  13) suite=trixie ;;
  *) die "there are guests of Debian 12 and 13: say lab/debian.sh 12 or lab/debian.sh 13" ;;
esac
[ -e "$LAB/initrd-6.1.key" ] || die "there is no kernel for the guest yet: run lab/setup.sh first"
lock_lab
need openssh-client mmdebstrap squashfs-tools

# The same for every build. Not 0: a password that was changed on day 0 counts as expired, and PAM
# then refuses cron its jobs.
export SOURCE_DATE_EPOCH=1672531200

packages=(
  # The system.
  systemd systemd-sysv udev dbus libpam-systemd kmod procps iproute2 iputils-ping
  # Services.
  redis-server nginx-light postgresql openssh-server cron
  # Clients and load.
  redis-tools curl netcat-openbsd python3-minimal stress-ng stockfish
)
enabled=(redis-server nginx postgresql ssh cron lab-address lab-control lab-echo lab-booted)
# The initrd's; udev loads the others.
modules=(virtio_pci virtio_blk squashfs overlay)
programs=target/x86_64-unknown-linux-gnu/release
# Another program of this workspace, taken along if somebody has built it.
agent=$programs/unmoor-agent
agent_unit=crates/agent/unmoor-agent.service

# --- The packages: the slow part, kept for as long as their names stay the same.
base=$LAB/debian-$number-base
# PostgreSQL makes its database when it is installed: its options have to be there before.
options=(
  --mode=root --variant=minbase --format=directory
  --include="$(IFS=, && printf '%s' "${packages[*]}")"
  --aptopt='Apt::Install-Recommends "false"'
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*'
  --dpkgopt='path-exclude=/usr/share/locale/*'
  --essential-hook='copy-in lab/debian/etc/postgresql-common /etc'
)
base_key=$({
  printf '%s\n' "$suite" "${options[@]}"
  cat lab/debian/etc/postgresql-common/*
} | sha256sum | cut -c1-16)
if [ "$(cat "$LAB/debian-$number-base.key" 2>/dev/null)" != "$base_key" ]; then
  say "installing the guest of Debian $number"
  rm -rf "$base" "$LAB/debian-$number-base.key"
  mmdebstrap "${options[@]}" "$suite" "$base" "$(suite_source "$suite")" \
    >"$LAB/debian-$number-base.log" 2>&1 || die "mmdebstrap failed: see $LAB/debian-$number-base.log"
  printf '%s' "$base_key" >"$LAB/debian-$number-base.key"
fi

# --- The image: the packages with the lab's files.
files() { # the lab's own, whoever has checked them out
  tar -C lab/debian --sort=name --mtime=@0 --owner=0 --group=0 --mode='u=rwX,go=rX' -c .
}
kernel=$LAB/kernel-6.1
inputs=(lab/debian.sh lab/common.sh lab/debian-init.sh "$programs/lab-guest" "$LAB/guest-12/.key" "$kernel/.key")
for optional in "$agent" "$agent_unit"; do
  [ ! -e "$optional" ] || inputs+=("$optional")
done
key=$({
  printf '%s\n' "$base_key" "${inputs[@]}"
  cat "${inputs[@]}"
  files
} | sha256sum | cut -c1-16)
[ "$(cat "$LAB/debian-$number.key" 2>/dev/null)" != "$key" ] || exit 0
say "building the image of the Debian $number guest"

root=$LAB/debian-$number-root
rm -rf "$root" "$LAB/debian-$number.key"
cp -a "$base" "$root"
files | tar -C "$root" --no-overwrite-dir -x
install -m 755 "$programs/lab-guest" "$root/usr/bin/lab-guest"
# Tests that run in both guests wait with busybox's usleep.
install -m 755 "$LAB/guest-12/usr/bin/busybox" "$root/usr/local/bin/usleep"
mkdir -p "$root/usr/lib/modules"
cp -r "$kernel/usr/lib/modules/$(cat "$kernel/release")" "$root/usr/lib/modules/"
depmod -b "$root" "$(cat "$kernel/release")"
if [ -e "$agent" ]; then
  install -m 755 "$agent" "$root/usr/bin/unmoor-agent"
  if [ -e "$agent_unit" ]; then
    install -m 644 "$agent_unit" "$root/etc/systemd/system/unmoor-agent.service"
    enabled+=(unmoor-agent)
  fi
fi
printf 'include /etc/redis/lab.conf\n' >>"$root/etc/redis/redis.conf"
systemctl --root="$root" --quiet enable "${enabled[@]}"
# There is no network to update from; and a login prompt on the serial line would hang up on
# whoever writes there.
systemctl --root="$root" --quiet mask apt-daily.timer apt-daily-upgrade.timer serial-getty@ttyS0.service
# What belongs to this machine or to this build.
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/apt/sources.list" "$root/var/cache/ldconfig/aux-cache" \
  "$root/var/lib/systemd/random-seed" "$root"/etc/{passwd,group,shadow,gshadow,subuid,subgid}-
rm -rf "$root"/var/log/{apt,postgresql/*,bootstrap.log,dpkg.log,alternatives.log} "$root"/var/cache/apt/*
: >"$root/etc/machine-id"
# Made anew without the access list, which squashfs cannot hold; systemd sets it at each boot.
rm -rf "$root/var/log/journal"
chroot "$root" install -d -m 2755 -g systemd-journal /var/log/journal
# Nothing has to be brought up to date at the first boot, which is every boot.
for folder in etc var; do
  printf 'TIMESTAMP_NSEC=%s000000000\n' "$SOURCE_DATE_EPOCH" >"$root/$folder/.updated"
done
# It refuses the variable beside an option for the time, and alone that does not set the files'.
env -u SOURCE_DATE_EPOCH mksquashfs "$root" "$LAB/debian-$number.squashfs.new" -noappend -quiet -no-progress \
  -comp zstd -Xcompression-level 6 -mkfs-time "$SOURCE_DATE_EPOCH" -all-time "$SOURCE_DATE_EPOCH"
mv "$LAB/debian-$number.squashfs.new" "$LAB/debian-$number.squashfs"
rm -rf "$root"

image=$LAB/debian-initrd
rm -rf "$image"
mkdir -p "$image"/{base,bin,dev,proc,root,rw,sys}
install -m 755 "$LAB/guest-12/usr/bin/busybox" "$image/bin/busybox"
install -m 755 lab/debian-init.sh "$image/init"
add_modules "$image" "$kernel" "${modules[@]}"
pack_initrd "$image" "$LAB/debian-initrd.gz"
rm -rf "$image"
printf '%s' "$key" >"$LAB/debian-$number.key"
