#!/usr/bin/env bash
# Makes the disk of a small Debian: an ext4 file system in a qcow2 image, with the tools that tests run in it.
#
#   root-disk.sh CACHE SUITE TREE IMAGE BYTES PROGRAM...
#
#   CACHE/TREE      what debootstrap made, kept because it takes a minute and a network
#   CACHE/IMAGE     the disk; both appear whole or not at all, and one run at a time makes them
#   PROGRAM...      programs of this host, put into /opt/tools with the libraries and the loader they use, so
#                   that it does not matter which release this host is
#
# Ends with 3 when debootstrap cannot do its work here, for instance without a network.
set -euo pipefail
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
cd -- "$1"
suite=$2 tree=$3 image=$4 bytes=$5
shift 5

exec 9>lock
flock 9
[ ! -e "$image" ] || exit 0

work=$(mktemp -d "$PWD/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ ! -d "$tree" ]; then
  if ! debootstrap --variant=minbase "$suite" "$work/tree" >"$work/log" 2>&1; then
    tail -n 5 "$work/log" >&2
    exit 3
  fi
  rm -rf "$work"/tree/var/{cache/apt,lib/apt/lists}/* "$work"/tree/usr/share/{doc,info,man,locale,zoneinfo}/*
  rm -rf tree-*
  mv "$work/tree" "$tree"
fi

# Copies a program and everything it is linked with; a wrapper starts it with the loader that came along.
bundle() {
  local name=$1 tools=$work/root/opt/tools program linked loader
  program=$(readlink -f -- "$(command -v "$name")")
  cp -- "$program" "$tools/lib/$name"
  linked=$(ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true)
  if [ -z "$linked" ]; then
    mv "$tools/lib/$name" "$tools/$name"
    return
  fi
  # shellcheck disable=SC2086  # one word for each library
  cp -Lu -- $linked "$tools/lib/"
  loader=$(basename -- "$(grep -m1 /ld- <<<"$linked")")
  printf '#!/bin/sh\nexec /opt/tools/lib/%s --library-path /opt/tools/lib /opt/tools/lib/%s "$@"\n' \
    "$loader" "$name" >"$tools/$name"
  chmod +x "$tools/$name"
}

cp -a --reflink=auto "$tree" "$work/root"
mkdir -p "$work/root/opt/tools/lib"
for program; do bundle "$program"; done
install -m 755 "$here/root-init.sh" "$work/root/sbin/init"
rm -f "$work/root/etc/resolv.conf"
echo strata-guest >"$work/root/etc/hostname"

truncate -s "$bytes" "$work/raw"
mkfs.ext4 -q -L strata-root -E lazy_itable_init=0,lazy_journal_init=0 -d "$work/root" "$work/raw"
qemu-img convert -f raw -O qcow2 "$work/raw" "$work/image"
rm -f root-*.qcow2
mv "$work/image" "$image"
