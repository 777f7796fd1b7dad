#!/usr/bin/env bash
# Adds the versions of kernel, QEMU and libvirt that only the slow tests run on. After lab/setup.sh,
# whose guest it takes.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
check_system
check_root
. lab/archive.sh

[ -e "$LAB/initrd-6.1.key" ] || die "there is no guest yet: run lab/setup.sh first"
lock_lab
provide kernel 5.10
provide kernel newest-generic
provide qemu 10.0-trixie
provide libvirt 11.3
lab/image.sh
