#!/bin/sh
# The first process of the Debian on the root disk; the initramfs has set up the network and /dev.
export PATH=/opt/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=dumb
[ -d /proc/self ] || mount -t proc proc /proc
[ -d /sys/block ] || mount -t sysfs sys /sys
[ -c /dev/null ] || mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 tmpfs /run
mount -o remount,rw /
cd /root
PS1='' PS2=''
export PS1 PS2
stty -echo </dev/console
echo "strata debian is up: release $(cat /etc/debian_version), boot $(cat /proc/sys/kernel/random/boot_id)"
while :; do
  busybox setsid busybox cttyhack bash --norc --noprofile --noediting
done
