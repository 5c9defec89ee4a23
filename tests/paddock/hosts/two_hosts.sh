#!/bin/sh
# two_hosts.sh COMMAND...: run it on host a of two, a and b, which a cable joins.
#
# A host is a network namespace with a name, and shared memory, of its own; all files are shared.
# Everything ends with this process, which was started by
#   unshare [--user --map-root-user] --mount --net --pid --fork --kill-child --mount-proc
set -e
mount -t tmpfs none /run
mkdir /run/netns
ip netns add a
ip netns add b
ip link add eth0 netns a type veth peer name eth0 netns b
ip -n a addr add 10.77.0.1/24 dev eth0
ip -n b addr add 10.77.0.2/24 dev eth0
for host in a b; do
    ip -n "$host" link set lo up
    ip -n "$host" link set eth0 up
done
for host in a b; do # what MPI does not find to be running as it starts, it never uses
    until ip -n "$host" link show eth0 | grep -q "state UP"; do sleep 0.02; done
done
printf '127.0.0.1 localhost\n10.77.0.1 a\n10.77.0.2 b\n' > /run/hosts
mount --bind /run/hosts /etc/hosts
exec "$(dirname "$0")/enter.sh" a "$@"
