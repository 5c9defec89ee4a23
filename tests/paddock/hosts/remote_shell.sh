#!/bin/sh
# remote_shell.sh [options] HOST COMMAND...: in the place of ssh, between the hosts of two_hosts.sh.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
if [ ! -e "/run/netns/$host" ]; then
    echo "ssh: Could not resolve hostname $host: Name or service not known" >&2
    exit 255
fi
exec "$(dirname "$0")/enter.sh" "$host" sh -c "$*"
