#!/usr/bin/env bash
# Runs a command with the RabbitMQ of a later Debian suite in the place of the system's: `trixie` has 4.0, `forky` 4.3.
#
#   rabbitmq4.sh SUITE COMMAND…
#
# Linux and root. The suite is kept in /var/tmp/warren-rabbitmq-SUITE (500 MB; the first run takes a minute), or below
# WARREN_TEST_RABBITMQ_CACHE. Every mount lives in a mount namespace of its own and goes away with the command, so the
# broker of the machine is left alone. The mirror is the one that apt uses, or WARREN_TEST_DEBIAN_MIRROR.
set -euo pipefail

suite=$1
root=${WARREN_TEST_RABBITMQ_CACHE:-/var/tmp}/warren-rabbitmq-$suite
programs=/usr/lib/rabbitmq/bin

# Prints the mirror of Debian in apt's own sources, in either format.
apt_mirror() {
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
        awk '/^(URIs:|deb )/ && !mirror { for (i = 2; i <= NF; i++) if ($i ~ /^http.*\/debian\/?$/) mirror = $i }
            END { print mirror }'
}

mirror=${WARREN_TEST_DEBIAN_MIRROR:-$(apt_mirror)}

# Names everything that is missing at once.
check() {
    local missing=()
    [ "$(id -u)" = 0 ] || missing+=("root: it mounts and changes its root directory")
    command -v unshare >/dev/null || missing+=("unshare, of util-linux")
    command -v apt-get >/dev/null || missing+=("apt-get: it installs the packages of Debian")
    [ -n "$mirror" ] || missing+=("a mirror of Debian in apt's sources, or WARREN_TEST_DEBIAN_MIRROR")
    [ "${#missing[@]}" -gt 0 ] || return 0
    echo "RabbitMQ 4 of Debian $suite needs:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
}

install_on_host() {
    [ -d "$programs" ] || packages+=(rabbitmq-server)
    command -v debootstrap >/dev/null || packages+=(debootstrap)
    [ "${#packages[@]}" -gt 0 ] || return 0
    apt-get update -qq >&2
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
}

# Fetches the suite; what an interrupted run left behind is begun anew.
bootstrap() {
    [ ! -e "$root.ready" ] || return 0
    echo "fetching RabbitMQ of Debian $suite into $root" >&2
    rm -rf "$root"
    # An older debootstrap knows no script for a later suite; they are all the same one.
    local script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    debootstrap --variant=minbase "$suite" "$root" "$mirror" "$script" >"$root.log" 2>&1 || fetch_failed
    # 101: no service is started (deb-systemd-invoke and invoke-rc.d ask it).
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    mount_system
    # A mirror that lags has an expired Release file for a testing suite.
    DEBIAN_FRONTEND=noninteractive chroot "$root" sh -c 'apt-get -o Acquire::Check-Valid-Until=false update -qq &&
        apt-get install -y -qq --no-install-recommends rabbitmq-server' >>"$root.log" 2>&1 || fetch_failed
    touch "$root.ready"
}

fetch_failed() {
    echo "cannot fetch Debian $suite from $mirror; the end of $root.log:" >&2
    tail -n 20 "$root.log" >&2
    exit 1
}

# The broker's files stay under the folder of the test, which is the same inside.
mount_system() {
    ! mountpoint -q "$root/proc" || return 0
    mount --bind /proc "$root/proc"
    mount --bind /dev "$root/dev"
    mount --bind /tmp "$root/tmp"
    cp /etc/hosts /etc/resolv.conf "$root/etc/"
}

# Programs of the same names that change into the suite.
replace_programs() {
    mkdir -p "$root.bin"
    local program
    for program in rabbitmq-server rabbitmqctl rabbitmq-plugins rabbitmq-diagnostics rabbitmq-queues; do
        printf '#!/bin/sh\nexec chroot %s %s/%s "$@"\n' "$root" "$programs" "$program" >"$root.bin/$program"
        chmod +x "$root.bin/$program"
    done
    mount --bind "$root.bin" "$programs"
}

if [ "${WARREN_TEST_RABBITMQ_INSIDE-}" != "$suite" ]; then
    check
    exec env "WARREN_TEST_RABBITMQ_INSIDE=$suite" unshare -m --propagation private "$0" "$@"
fi
shift
packages=()
install_on_host
bootstrap
mount_system
replace_programs
# Tests put their folders below TMPDIR, and only /tmp is the same inside.
exec env -u WARREN_TEST_RABBITMQ_INSIDE TMPDIR=/tmp "$@"
