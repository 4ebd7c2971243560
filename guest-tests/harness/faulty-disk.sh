#!/bin/sh
# A disk that fails when it is told to, for nbdkit's sh plugin: nbdkit sh faulty-disk.sh folder=FOLDER
#
#   FOLDER/disk          what it holds; may be a link
#   FOLDER/fail-CALL     while it is there, such calls fail with the errno that it names, such as EIO; a write
#                        has written its first half then
#   FOLDER/hold-CALL     while it is there, such calls wait; FOLDER/held-CALL says that one does
#
# CALL is pread, pwrite, zero, trim or flush.
folder=$tmpdir/folder
disk=$folder/disk
call=$1

fail() {
  echo "$1 as it was told" >&2
  exit 1
}

write() {
  dd of="$disk" seek="$1" bs=1M conv=notrunc oflag=seek_bytes status=none
}

case $call in
  pread | pwrite | zero | trim | flush)
    if [ -e "$folder/hold-$call" ]; then
      : >"$folder/held-$call"
      while [ -e "$folder/hold-$call" ]; do sleep 0.02; done
    fi
    if [ -e "$folder/fail-$call" ]; then
      [ "$call" != pwrite ] || head -c $(($3 / 2)) | write "$4"
      fail "$(cat "$folder/fail-$call")"
    fi
    ;;
esac

case $call in
  config) ln -s "$3" "$folder" ;;
  config_complete | can_write | can_flush | can_trim | can_zero) ;;
  thread_model) echo parallel ;;
  get_size) stat -Lc %s "$disk" ;;
  pread) dd if="$disk" skip="$4" count="$3" bs=1M iflag=count_bytes,skip_bytes status=none || fail EIO ;;
  pwrite) write "$4" || fail EIO ;;
  trim | zero) fallocate -p -o "$4" -l "$3" "$disk" || fail EOPNOTSUPP ;;
  flush) ;;
  *) exit 2 ;;
esac
