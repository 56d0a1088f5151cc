#!/bin/sh
# PID 1 of a test guest: busybox in the initramfs. The host's root is mounted read-only, with fresh tmpfs over the folders
# that programs write to; paths of the host below those (a checkout in /tmp, say) are bound back into place. Then the
# command runner of devtools/guest_exec.py runs in a chroot, and its exit code is the guest's.
# What differs between guests comes in files of the share's .guest folder, written by devtools/guest.py.
export PATH=/bin

die() {
    echo "guest: $*"
    poweroff -f
}

p9() { # tag, folder, options
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,access=any,$3" "$1" "$2" || die "no 9p mount of $1"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module.ko" || die "no module $module"
done < /modules/order
echo 'module mtty func mtty_step_state +p' > /proc/dynamic_debug/control || die 'no dynamic debug'

p9 root /host ro,cache=loose
p9 share /share rw,cache=none
config=/share/.guest

root=/newroot
mount -o bind /host $root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts devpts $root/dev/pts
mount -t tmpfs tmpfs $root/dev/shm
for folder in run tmp var/tmp mnt; do
    mount -t tmpfs -o mode=1777 tmpfs $root/$folder || die "no tmpfs on /$folder"
    while read -r path; do
        case $path in
        /$folder/*) mkdir -p "$root$path" && mount -o bind "/host$path" "$root$path" || die "cannot show $path" ;;
        esac
    done < $config/visible
done
mkdir -p $root/run/share
mount -o bind /share $root/run/share

hostname "$(cat $config/name)"
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
if [ -e $config/address ]; then
    ip link set eth1 up
    ip addr add "$(cat $config/address)/24" dev eth1
fi

python=$(cat $config/python)
runner=$(cat $config/runner)
cd /
HOME=/run TMPDIR=/run LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 chroot $root "$python" -E -S -u "$runner" /run/share
echo $? > $config/rc
sync
poweroff -f
