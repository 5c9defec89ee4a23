#!/bin/sh
# enter.sh HOST COMMAND...: run it on a host of two_hosts.sh.
#
# $WITHOUT is a folder that host b does not have.
set -e
exec nsenter --net="/run/netns/$1" \
    unshare --uts --ipc --mount --pid --fork --kill-child --mount-proc \
    sh -e -c '
        hostname "$1"
        mount -t sysfs none /sys
        mount -t tmpfs none /dev/shm
        [ "$1" = a ] || [ -z "$WITHOUT" ] || mount -t tmpfs none "$WITHOUT"
        shift
        exec "$@"' sh "$@"
