# What the lab's set-up scripts share; they source it in the checkout's root.
# shellcheck shell=bash
LAB=$PWD/target/lab
# shellcheck source=/dev/null
. /etc/os-release # for VERSION_CODENAME: every package comes from this system's own release

say() { printf 'lab: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

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
  say "installing ${missing[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# The mirror that the system uses.
mirror() {
  # shellcheck disable=SC2016 # the names are apt's
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk -v release="$VERSION_CODENAME" '$2 == release { print $1; exit }'
}

suite_source() { # suite_source SUITE: the line for apt
  local options=
  [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    options='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
  printf 'deb %s %s %s main\n' "$options" "$(mirror)" "$1"
}

suite_apt() { # suite_apt SUITE APT-COMMAND ARGS...: apt with that suite alone
  local suite=$1 command=$2 state=$LAB/apt/$1
  shift 2
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  # As on an empty system: what is installed here must not decide which version is taken.
  : >"$state/status"
  suite_source "$suite" >"$state/sources.list"
  "$command" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$state/lists" -o Dir::Cache="$state/cache" \
    -o Dir::State::status="$state/status" -o APT::Sandbox::User=root -qq "$@"
}

kernel_release() { # kernel_release ROOT: the release of the kernel unpacked there
  local kernel
  kernel=$(basename "$1"/boot/vmlinuz-*)
  printf '%s' "${kernel#vmlinuz-}"
}

guest_release() { # the release of the guests' usual kernel
  kernel_release "$LAB/guest-root"
}

add_modules() { # add_modules IMAGE ROOT MODULE...: modules, and the order in which they load
  local folder=$1/lib/modules root=$2 module release
  shift 2
  release=$(kernel_release "$root")
  depmod -b "$root" "$release"
  mkdir -p "$folder"
  for module in "$@"; do
    modprobe -d "$root" -S "$release" --show-depends "$module"
  done | awk '$1 == "insmod" { print $2 }' | awk '!seen[$0]++' | while read -r module; do
    install -m 644 "$module" "$folder/"
    basename "$module"
  done >"$folder/order"
}

pack_initrd() { # pack_initrd IMAGE FILE: the same contents give the same file
  # Nothing of the moment of building may get in.
  find "$1" -exec touch -h -d @0 {} +
  (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0) |
    gzip -n -6 >"$2.new"
  mv "$2.new" "$2"
}
