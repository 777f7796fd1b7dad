# What the lab's set-up scripts share; they source it in the checkout's root.
# shellcheck shell=bash
LAB=$PWD/target/lab

say() { printf 'lab: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Packages come from Debian's archive, and programs that need the system's C library are built against
# those of these two.
check_system() { # dies unless this is a system that the scripts know
  local ID=unknown VERSION_ID='' PRETTY_NAME='no system that names itself in /etc/os-release'
  # shellcheck source=/dev/null
  [ ! -r /etc/os-release ] || . /etc/os-release
  [ "$(uname -m)" = x86_64 ] ||
    die "this machine is $(uname -m), and only x86_64 is supported: use an x86_64 machine or VM with Debian 12 or 13"
  case $ID-$VERSION_ID in
    debian-12 | debian-13) ;;
    *) die "this is $PRETTY_NAME, and the set-up installs packages of Debian 12 or 13: run it in a VM or a privileged container of one of those" ;;
  esac
}

check_root() {
  [ "$(id -u)" = 0 ] ||
    die "this is not root, which the lab must be to make network namespaces: run it with sudo, or in a VM or a privileged container as root"
}

# One set-up at a time.
lock_lab() {
  mkdir -p "$LAB"
  exec 9>"$LAB/lock"
  flock 9
}

need() { # need PACKAGE...: installs what this system lacks
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] ||
    die "packages are missing, and only root can install them: run lab/tools.sh with sudo once (${missing[*]})"
  say "installing ${missing[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

add_modules() { # add_modules IMAGE KERNEL MODULE...: modules, and the order in which they load
  local folder=$1/lib/modules kernel=$2 module name release
  shift 2
  release=$(cat "$kernel/release")
  mkdir -p "$folder"
  for module in "$@"; do
    modprobe -d "$kernel" -S "$release" --show-depends "$module"
  done | awk '$1 == "insmod" { print $2 }' | awk '!seen[$0]++' | while read -r module; do
    # The image is compressed as a whole, and busybox need not know what a kernel packs its modules with.
    name=$(basename "$module")
    case $name in
      *.xz) name=${name%.xz}; xz -dc "$module" >"$folder/$name" ;;
      *.zst) name=${name%.zst}; zstd -qdc "$module" >"$folder/$name" ;;
      *) cp "$module" "$folder/$name" ;;
    esac
    chmod 644 "$folder/$name"
    echo "$name"
  done >"$folder/order"
}

pack_initrd() { # pack_initrd IMAGE FILE: the same contents give the same file
  # Nothing of the moment of building may get in.
  find "$1" -exec touch -h -d @0 {} +
  (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0) |
    gzip -n -6 >"$2.new"
  mv "$2.new" "$2"
}
