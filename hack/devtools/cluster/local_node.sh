#!/bin/sh
# Makes the mount namespace of one node of this machine (see local_node.py), says so, and stands for it until it is ended.
# What a node writes to is its own and empty; the devices are this machine's, without what is created beside them.
set -e
own=$1
mount --make-rprivate /
for folder in run var/lib var/log opt; do
    mount -t tmpfs -o mode=755 none "/$folder"
done
mkdir -p "$own/dev" "$own/dev-work"
mount -t overlay -o "lowerdir=/dev,upperdir=$own/dev,workdir=$own/dev-work" overlay /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs none /dev/shm
echo ready
exec sleep infinity
