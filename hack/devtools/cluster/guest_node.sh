#!/bin/sh
# guest_node.sh MODULES BUSYBOX API-ADDRESS [PODS NODE]...: what a test guest needs to be a Kubernetes node, beside its
# programs. PODS are other nodes' pod networks, NODE where these are.
set -e
modules=$1 busybox=$2 api=$3
shift 3
for module in "$modules"/*.ko; do
    "$busybox" insmod "$module"
done
for folder in var/lib var/log opt; do
    "$busybox" mount -t tmpfs -o mode=755 tmpfs "/$folder"
done
mkdir -p /var/lib/containerd
"$busybox" mount -t ext4 -o noatime /dev/vda /var/lib/containerd
echo 1 > /proc/sys/net/ipv4/ip_forward
"$busybox" ip address add "$api/32" dev lo
while [ $# -gt 0 ]; do
    "$busybox" ip route add "$1" via "$2"
    shift 2
done
