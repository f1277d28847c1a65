#!/bin/sh
# Runs a command on a pretended machine: this one without network and with a read-only
# disk, plus the folders of MOCK at the root, of which only those named in WRITABLE (one
# word, separated by colons) can be written.
# /scratch is empty memory, for temporary files and for the home of who runs there.
#
#   unshare --map-root-user --net --mount sandbox.sh MOCK WRITABLE COMMAND...
set -eu
mock=$1 writable=$2
shift 2
root=$mock.root
mkdir -p "$root"
mount -t tmpfs tmpfs "$root"
for folder in /* "$mock"/*; do
    place=$root/${folder##*/}
    [ ! -L "$folder" ] || { cp -P "$folder" "$place" && continue; }
    [ -d "$folder" ] || continue
    mkdir -p "$place"
    mount --rbind "$folder" "$place"
    # the system's own are no disk
    case $folder in /proc | /sys | /dev) continue ;; esac
    mount -o remount,bind,ro "$place"
done
mkdir "$root/scratch"
mount -t tmpfs tmpfs "$root/scratch"
echo "$writable" | tr : '\n' | while read -r folder; do
    mount --bind "$mock/$folder" "$root/$folder"
done
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
