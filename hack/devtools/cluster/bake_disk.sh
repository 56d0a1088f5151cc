#!/bin/sh
# bake_disk.sh WORK DISK CTR IMAGE...: containerd's root with images imported and unpacked, as an ext4 image. WORK holds
# containerd.toml and gets root/. Runs as root of a user namespace, so that files belong to whom the images say.
set -e
work=$1 disk=$2 ctr=$3
shift 3
mount -t tmpfs none /run
containerd -c "$work/containerd.toml" > "$work/containerd.log" 2>&1 &
pid=$!
trap 'kill $pid 2> /dev/null || true' EXIT
tries=0
while [ ! -S "$work/s/containerd.sock" ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { tail -n 3 "$work/containerd.log"; exit 1; }
    sleep 0.05
done
for image in "$@"; do
    "$ctr" --address "$work/s/containerd.sock" --namespace k8s.io images import --local "$image"
done
kill $pid
wait $pid || true
size=$(($(du -sm "$work/root" | cut -f1) + 300))
truncate -s ${size}M "$disk"
mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=0,nodiscard -m 0 -d "$work/root" "$disk"
