# What the lab takes from Debian's archive: the same whatever Debian it runs on, because no package
# depends on this system's own release. The set-up scripts source it after common.sh.
#
# A *thing* is a kernel, a qemu, a libvirt or the guest's programs. A *spec* says which one: the
# beginning of a version (`6.12`: the highest of those), with a suite behind it that one (`10.0-trixie`),
# or `newest`, the highest that any suite has on the day. What a spec came to is a line of versions.tsv:
#   THING SPEC PACKAGE VERSION SUITE
# or, where it could not be had:
#   THING SPEC PACKAGE "not had" WHY
# UNMOOR_VERSIONS=FILE, such a file of an earlier run, has exactly those versions fetched again.
# shellcheck shell=bash
# shellcheck source=lab/common.sh
VERSIONS=$LAB/versions.tsv
POOL=$LAB/pool

# Where several have the same version, the first is taken.
suites=(bullseye bookworm bookworm-backports trixie trixie-backports testing sid)

# --- apt, with lists of its own, so that the system's sources stay as they are.

# The mirror that the system uses: the place of its own release.
mirror() {
  local codename
  # shellcheck source=/dev/null
  codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
  # shellcheck disable=SC2016 # the names are apt's
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk -v release="$codename" '$2 == release && !place { place = $1 } END { print place }'
}

place= # asked once
suite_source() { # suite_source SUITE: the line for apt
  local options=
  place=${place:-$(mirror)}
  [ -n "$place" ] || cannot "apt has no lists of this system's own release: run apt-get update"
  [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    options='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
  printf 'deb %s %s %s main\n' "$options" "$place" "$1"
}

suite_apt() { # suite_apt SUITE APT-COMMAND ARGS...: apt with that suite, and what it is built on, alone
  local suite=$1 command=$2 state=$LAB/apt/$1
  shift 2
  "$command" -qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$LAB/apt/lists" -o Dir::Cache="$state/cache" \
    -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache=srcpkgcache.bin \
    -o Dir::State::status="$state/status" -o APT::Sandbox::User=root \
    -o APT::Get::List-Cleanup=0 -o APT::Update::Error-Mode=any \
    -o APT::Default-Release="$suite" -o APT::Install-Recommends=0 "$@"
}

refresh() { # refresh SUITE: has its lists as they are today, asking once in a run; fails if there are none
  local suite=$1 state=$LAB/apt/$1 answer
  answer=$(cat "$state/answer" 2>/dev/null) || true
  case $answer in
    "$$ has") return 0 ;;
    "$$ lacks") return 1 ;;
  esac
  mkdir -p "$state/cache/archives/partial" "$LAB/apt/lists/partial"
  # As on an empty system: what is installed here must not decide which version is taken.
  : >"$state/status"
  suite_source "$suite" >"$state/sources.list"
  # Backports lean on the release that they are for.
  case $suite in
    *-backports) suite_source "${suite%-backports}" >>"$state/sources.list" ;;
  esac
  if suite_apt "$suite" apt-get update 2>"$state/log"; then
    echo "$$ has" >"$state/answer"
  else
    say "$suite is left out: $(no_lists "$suite")"
    echo "$$ lacks" >"$state/answer"
    return 1
  fi
}

no_lists() { # no_lists SUITE: why; without places, which are the system's own
  printf 'apt gets no lists of %s: %s' "$1" \
    "$(sed -n '/^E: /{s///;s#[a-z+]*://[^ ]* *##g;p;q}' "$LAB/apt/$1/log")"
}

# --- Which version.

cannot() { # cannot WHY: ends the attempt to have a thing
  printf '%s' "$*" >"$LAB/why"
  exit 1
}

# Sets what a spec may be: package, the beginning of its version, and the suites that are asked.
wanted() { # wanted THING SPEC
  local thing=$1 spec=$2 suite
  prefix=$spec
  from=("${suites[@]}")
  case $thing-$spec in
    kernel-newest-generic) package=linux-image-amd64 prefix='' ;;
    kernel-newest-cloud) package=linux-image-cloud-amd64 prefix='' ;;
    kernel-*) package=linux-image-cloud-amd64 ;;
    qemu-*) package=qemu-system-x86 ;;
    libvirt-*) package=libvirt-daemon ;;
    # The programs of the small guest.
    guest-12) package=redis-server prefix='' from=(bookworm) ;;
    *) cannot "the lab has no thing named $thing $spec" ;;
  esac
  case $thing-$spec in
    *-newest) prefix='' ;;
    # As it was first in Debian 13, without its later fixes: users of Debian 12 have it. Debian 13's own
    # is `10.0-trixie`.
    qemu-10.0) from=(bookworm-backports) ;;
  esac
  for suite in "${suites[@]}"; do
    case $prefix in
      *-"$suite") prefix=${prefix%-"$suite"} from=("$suite") ;;
    esac
  done
}

line_of() { # line_of FILE THING SPEC: what is written there of a thing
  [ ! -e "$1" ] || awk -F '\t' -v thing="$2" -v spec="$3" '$1 == thing && $2 == spec { print; exit }' "$1"
}

record() { # record THING SPEC PACKAGE VERSION SUITE: one line for a thing
  touch "$VERSIONS"
  {
    awk -F '\t' -v thing="$1" -v spec="$2" '$1 != thing || $2 != spec' "$VERSIONS"
    (IFS=$'\t' && printf '%s\n' "$*")
  } | LC_ALL=C sort >"$VERSIONS.new"
  mv "$VERSIONS.new" "$VERSIONS"
}

# Sets package, version and suite: today's, or those of UNMOOR_VERSIONS.
resolve() { # resolve THING SPEC
  local one line
  wanted "$1" "$2"
  version='' suite=''
  if [ -n "${UNMOOR_VERSIONS:-}" ]; then
    line=$(line_of "$UNMOOR_VERSIONS" "$1" "$2")
    [ -n "$line" ] || cannot "$UNMOOR_VERSIONS does not name it"
    IFS=$'\t' read -r _ _ package version suite <<<"$line"
    [ "$version" != 'not had' ] || cannot "$UNMOOR_VERSIONS says that it was not had: $suite"
    refresh "$suite" || cannot "$(no_lists "$suite")"
    return 0
  fi
  for one in "${from[@]}"; do
    refresh "$one" || continue
    while IFS= read -r line; do
      case ${line#*:} in
        "$prefix" | "$prefix"[!0-9]*) ;;
        *) [ -z "$prefix" ] || continue ;;
      esac
      if [ -z "$version" ] || dpkg --compare-versions "$line" gt "$version"; then
        version=$line suite=$one
      fi
    done < <(offered "$one" "$package")
  done
  [ -n "$version" ] || cannot "no $package ${prefix:+$prefix }is in ${from[*]}"
  # The package that holds it, not the one that follows the newest.
  if [ "$1" = kernel ]; then
    package=$(suite_apt "$suite" apt-cache depends "$package=$version" |
      awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    [ -n "$package" ] || cannot "the kernel's package $version in $suite names no image"
  fi
}

offered() { # offered SUITE PACKAGE: its versions in that suite itself
  suite_apt "$1" apt-cache madison "$2" |
    awk -F ' *[|] *' -v suite="$1/" 'index($3, " " suite) { print $2 }'
}

# --- Packages.

needed() { # needed SUITE PATTERN PACKAGE=VERSION...: files of these and all that they depend on, by name
  local suite=$1 pattern=$2
  shift 2
  suite_apt "$suite" apt-get install --yes --print-uris "$@" |
    awk -v pattern="$pattern" '/^\047/ && $2 ~ pattern { print $2 }' | LC_ALL=C sort
}

fetch() { # fetch SUITE FILE...: has these files in the pool, where every thing finds them
  local suite=$1 file missing=()
  shift
  mkdir -p "$POOL"
  for file in "$@"; do
    [ -e "$POOL/$file" ] || missing+=("$(sed -E 's/^([^_]*)_(.*)_[^_]*$/\1=\2/; s/%3a/:/' <<<"$file")")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  # What is interrupted leaves no half a file in the pool.
  rm -rf "$POOL/new"
  mkdir "$POOL/new"
  (cd "$POOL/new" && suite_apt "$suite" apt-get download "${missing[@]}") ||
    cannot "the archive does not give all of its packages"
  mv "$POOL"/new/*.deb "$POOL/"
  rmdir "$POOL/new"
}

unpack() { # unpack FOLDER FILE...: files of the pool, everything under usr/
  local folder=$1 name file
  shift
  mkdir -p "$folder"/usr/{bin,lib,lib64,sbin}
  # Older packages have these outside of it.
  for name in bin lib lib64 sbin; do
    ln -s "usr/$name" "$folder/$name"
  done
  for file in "$@"; do
    dpkg-deb --fsys-tarfile "$POOL/$file" |
      tar -x -C "$folder" --keep-directory-symlink --no-same-owner --exclude='./usr/share/doc' \
        --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/lib/debug'
  done
}

# --- Programs that run with libraries of their own.

loader_of() { # loader_of FOLDER: how to start a program of it, up to the program
  local libraries=$1/usr/lib/x86_64-linux-gnu
  printf '%s --inhibit-cache --library-path %s' "$libraries/ld-linux-x86-64.so.2" "$libraries"
}

is_program() { # is_program FILE: whether it is for the processor to run, and no script
  [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]
}

check_libraries() { # check_libraries FOLDER FILE...: everything that these load is in the folder
  local folder=$1 loader file outside
  loader=$(loader_of "$folder")
  shift
  for file in "$@"; do
    # shellcheck disable=SC2086 # words are what is wanted
    outside=$($loader --list "$file" 2>&1 |
      awk -v folder="$folder/" '!/linux-vdso/ && !/statically linked/ && !index($0, folder)') || true
    [ -z "$outside" ] || cannot "$(basename "$file") needs what its packages do not have: $outside"
  done
}

wrap() { # wrap FOLDER AT PROGRAM [WORD...]: a script in the program's place, once FOLDER is at AT
  local folder=$1 at=$2 program=$3
  shift 3
  mv "$folder/$program" "$folder/$program.bin"
  cat >"$folder/$program" <<END
#!/bin/sh
# Runs with the libraries of its own folder, so that it is the same program on every host.
export QEMU_MODULE_DIR=$at/usr/lib/x86_64-linux-gnu/qemu
exec $(loader_of "$at") --argv0 "\$0" $at/$program.bin $* "\$@"
END
  chmod 755 "$folder/$program"
}

# --- The things.

make_kernel() { # make_kernel FOLDER PACKAGE VERSION SUITE: vmlinuz, release, and modules
  local folder=$1 files release
  # Since 7.x the image's package holds nothing itself.
  mapfile -t files < <(needed "$4" '^linux-(image|binary|modules|base)-[0-9]' "$2=$3")
  [ ${#files[@]} -gt 0 ] || cannot "$4 does not have $2 $3 any more"
  fetch "$4" "${files[@]}"
  unpack "$folder" "${files[@]}"
  release=${2#linux-image-}
  if [ -e "$folder/boot/vmlinuz-$release" ]; then
    mv "$folder/boot/vmlinuz-$release" "$folder/vmlinuz"
  else
    mv "$folder/usr/lib/modules/$release/vmlinuz" "$folder/vmlinuz"
  fi
  printf '%s' "$release" >"$folder/release"
  depmod -b "$folder" "$release"
}

make_qemu() { # make_qemu FOLDER PACKAGE VERSION SUITE AT
  local folder=$1 at=$5 files share
  mapfile -t files < <(needed "$4" '^(z?lib|qemu-system-|seabios_|ipxe-qemu_)' "$2=$3")
  [ ${#files[@]} -gt 0 ] || cannot "$4 does not have $2 $3 any more"
  fetch "$4" "${files[@]}"
  unpack "$folder" "${files[@]}"
  check_libraries "$folder" "$folder/usr/bin/qemu-system-x86_64" "$folder"/usr/lib/x86_64-linux-gnu/qemu/*.so
  share=$at/usr/share
  wrap "$folder" "$at" usr/bin/qemu-system-x86_64 \
    -L "$share/qemu" -L "$share/seabios" -L "$at/usr/lib/ipxe/qemu"
}

make_libvirt() { # make_libvirt FOLDER PACKAGE VERSION SUITE AT
  local folder=$1 at=$5 files file programs=()
  # QEMU is another thing.
  mapfile -t files < <(needed "$4" '^z?lib' "$2=$3" "libvirt-daemon-driver-qemu=$3" "libvirt-clients=$3")
  [ ${#files[@]} -gt 0 ] || cannot "$4 does not have $2 $3 any more"
  fetch "$4" "${files[@]}"
  unpack "$folder" "${files[@]}"
  # Its daemon, its client, and what the daemon starts.
  for file in "$folder"/usr/{sbin/libvirtd,bin/virsh,lib/libvirt/*}; do
    if [ -f "$file" ] && is_program "$file"; then
      programs+=("$file")
    fi
  done
  check_libraries "$folder" "${programs[@]}" "$folder"/usr/lib/x86_64-linux-gnu/libvirt/*/*.so
  for file in "${programs[@]}"; do
    wrap "$folder" "$at" "${file#"$folder/"}"
  done
}

make_guest() { # make_guest FOLDER PACKAGE VERSION SUITE
  local files
  mapfile -t files < <(needed "$4" '^(z?lib|redis-|busybox-static_)' "$2=$3" busybox-static)
  [ ${#files[@]} -gt 0 ] || cannot "$4 does not have $2 $3 any more"
  fetch "$4" "${files[@]}"
  unpack "$1" "${files[@]}"
}

# --- All together.

obtain() { # obtain THING SPEC: ends the shell if it cannot
  local folder=$LAB/$1-$2 package version suite prefix from line
  # What is here stays until another version is asked for.
  line=$(line_of "$VERSIONS" "$1" "$2")
  if [ -z "${UNMOOR_VERSIONS:-}" ] || [ "$line" = "$(line_of "$UNMOOR_VERSIONS" "$1" "$2")" ]; then
    [ "$(cat "$folder/.key" 2>/dev/null)" != "$(key_of "$line")" ] || return 0
  fi
  resolve "$1" "$2"
  say "$1 $2 is $version of $suite"
  rm -rf "$folder" "$folder.new"
  mkdir "$folder.new"
  "make_$1" "$folder.new" "$package" "$version" "$suite" "$folder"
  record "$1" "$2" "$package" "$version" "$suite"
  key_of "$(line_of "$VERSIONS" "$1" "$2")" >"$folder.new/.key"
  mv "$folder.new" "$folder"
}

key_of() { # key_of LINE: what a folder was made from
  { printf '%s\n' "$LAB" "$1" && cat lab/archive.sh; } | sha256sum | cut -c1-16
}

provide() { # provide THING SPEC: has it in target/lab/THING-SPEC, or records why not
  local status=0 why
  mkdir -p "$LAB"
  rm -f "$LAB/why"
  # Where a caller tests it, a function goes on after errors: this one is a shell of its own.
  set +e
  (set -e; obtain "$1" "$2")
  status=$?
  set -e
  [ $status -ne 0 ] || return 0
  why=$(cat "$LAB/why" 2>/dev/null) || why='its packages could not be fetched and unpacked'
  rm -rf "$LAB/$1-$2" "$LAB/$1-$2.new"
  record "$1" "$2" - 'not had' "$why"
  say "$1 $2 is not had: $why"
}

provide_or_die() { # provide_or_die THING SPEC: what nothing goes on without
  provide "$1" "$2"
  [ -e "$LAB/$1-$2" ] || die "the lab cannot do without $1 $2; what is missing is in $VERSIONS"
}
