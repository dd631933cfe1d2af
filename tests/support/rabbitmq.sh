#!/usr/bin/env bash
# A private RabbitMQ for tests and for ./cluster: own data, own ports, own cookie, own epmd; nothing of the
# machine's broker is touched.
#
# Sourced:   start_rabbitmq; ...; stop_rabbitmq     (put stop_rabbitmq into an EXIT trap first)
#   start_rabbitmq exports WARREN_TEST_AMQP_URL, WARREN_TEST_MANAGEMENT_URL and WARREN_TEST_RABBITMQ_DIR.
# Executed:  rabbitmq.sh stop|kill|start|ctl <dir> [args]     (dir = WARREN_TEST_RABBITMQ_DIR)
#   so that a test can take the broker away and bring it back with the same data and the same ports.
set -euo pipefail

# Succeeds when something listens on the loopback port.
port_is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Prints $1 distinct free ports. They lie below the ephemeral range, so no outgoing connection takes one.
free_ports() {
    local port chosen=" "
    while [ "$(wc -w <<<"$chosen")" -lt "$1" ]; do
        port=$((15000 + RANDOM % 16000))
        case $chosen in *" $port "*) continue ;; esac
        port_is_open "$port" || chosen+="$port "
    done
    echo $chosen
}

# Succeeds while the process runs; a zombie (its parent has not looked yet) counts as gone.
process_runs() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    [ "${stat%% *}" != Z ]
}

# Waits up to $2 seconds for the end of process $1.
wait_for_exit() {
    local deadline=$((SECONDS + $2))
    while process_runs "$1"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# Sets RABBITMQ_BIN to the folder of the broker's own scripts. Debian's wrapper in /usr/sbin would change
# the user and lower `ulimit -n`; the script behind it does neither.
find_rabbitmq() {
    local server
    for _ in 1 2; do
        for server in /usr/lib/rabbitmq/bin/rabbitmq-server "$(command -v rabbitmq-server || true)"; do
            if [ -x "$server" ]; then
                RABBITMQ_BIN=$(dirname "$server")
                return
            fi
        done
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            break
        fi
        echo "installing rabbitmq-server" >&2
        apt-get update -qq >&2
        # RUNLEVEL=1 keeps the package from starting a broker of its own.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends rabbitmq-server curl >&2
    done
    echo "RabbitMQ is missing: install rabbitmq-server (3.10 or newer), or set WARREN_TEST_AMQP_URL" >&2
    return 1
}

# The environment of one broker: everything it would else take from /etc, /var or $HOME is in its folder.
rabbitmq_environment() {
    local dir=$1
    # shellcheck source=/dev/null
    . "$dir/ports"
    export HOME=$dir ERL_EPMD_PORT=$EPMD_PORT ERL_EPMD_ADDRESS=127.0.0.1
    export RABBITMQ_NODENAME="warren-$AMQP_PORT@localhost"
    export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=$AMQP_PORT RABBITMQ_DIST_PORT=$DIST_PORT
    export RABBITMQ_MNESIA_BASE=$dir/data RABBITMQ_LOG_BASE=$dir/log
    export RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config
    export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins RABBITMQ_CONF_ENV_FILE=$dir/rabbitmq-env.conf
    # +sbwt none: idle schedulers sleep instead of spinning on cores that the gateway needs.
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none -kernel inet_dist_use_interface {127,0,0,1}"
}

# Starts the broker whose folder is $1 and waits until it takes connections.
launch_rabbitmq() {
    local dir=$1 deadline=$((SECONDS + 90))
    # setsid: Ctrl-C must reach the gateway nodes first, and halt_rabbitmq needs a process group.
    (
        rabbitmq_environment "$dir"
        # Our own epmd, or the virtual machine would leave one behind.
        if ! port_is_open "$EPMD_PORT"; then
            setsid epmd -address 127.0.0.1 -port "$EPMD_PORT" >/dev/null 2>&1 </dev/null &
            echo $! >"$dir/epmd.pid"
        fi
        setsid "$RABBITMQ_BIN/rabbitmq-server" >"$dir/log/start" 2>&1 </dev/null &
        echo $! >"$dir/pid"
    )
    # shellcheck source=/dev/null
    . "$dir/ports"
    until port_is_open "$AMQP_PORT" &&
        curl -fs -o /dev/null -u guest:guest "http://127.0.0.1:$MANAGEMENT_PORT/api/overview"; do
        if [ "$SECONDS" -ge "$deadline" ] || ! process_runs "$(cat "$dir/pid")"; then
            echo "RabbitMQ did not start; the end of its output:" >&2
            tail -n 30 "$dir/log/start" >&2
            return 1
        fi
        sleep 0.2
    done
}

# Stops the broker whose folder is $1: gently, or with $2 = KILL as a crash would. Its data stays.
halt_rabbitmq() {
    local dir=$1 pid
    [ -s "$dir/pid" ] || return 0
    pid=$(cat "$dir/pid")
    if [ "${2:-TERM}" = TERM ]; then
        kill -TERM "$pid" 2>/dev/null || true
        wait_for_exit "$pid" 30 || true
    fi
    # The group holds the broker's shell and its virtual machine.
    kill -KILL -- "-$pid" 2>/dev/null || true
    wait_for_exit "$pid" 5 || true
    rm -f "$dir/pid"
}

start_rabbitmq() {
    find_rabbitmq
    local dir
    dir=$(mktemp -d "${TMPDIR:-/tmp}/warren-rabbitmq.XXXXXX")
    export WARREN_TEST_RABBITMQ_DIR=$dir
    mkdir "$dir/data" "$dir/log"
    : >"$dir/rabbitmq-env.conf"
    echo '[rabbitmq_management].' >"$dir/enabled_plugins"
    local ports
    read -ra ports <<<"$(free_ports 4)"
    printf 'AMQP_PORT=%s MANAGEMENT_PORT=%s DIST_PORT=%s EPMD_PORT=%s\n' "${ports[@]}" >"$dir/ports"
    cat >"$dir/rabbitmq.conf" <<CONF
management.tcp.ip = 127.0.0.1
management.tcp.port = ${ports[1]}
disk_free_limit.absolute = 50MB
CONF
    launch_rabbitmq "$dir"
    export WARREN_TEST_AMQP_URL="amqp://guest:guest@127.0.0.1:${ports[0]}/%2f"
    export WARREN_TEST_MANAGEMENT_URL="http://guest:guest@127.0.0.1:${ports[1]}"
}

# May be called twice, and when nothing was started.
stop_rabbitmq() {
    local dir=${WARREN_TEST_RABBITMQ_DIR:-}
    [ -n "$dir" ] && [ -d "$dir" ] || return 0
    # No gentle stop (it takes seconds): the data goes away as well.
    halt_rabbitmq "$dir" KILL
    if [ -s "$dir/epmd.pid" ]; then
        kill -TERM "$(cat "$dir/epmd.pid")" 2>/dev/null || true
    fi
    rm -rf "$dir"
    unset WARREN_TEST_RABBITMQ_DIR WARREN_TEST_AMQP_URL WARREN_TEST_MANAGEMENT_URL
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    verb=${1:?stop, kill, start or ctl} dir=${2:?the folder of the broker}
    find_rabbitmq
    case $verb in
    start) launch_rabbitmq "$dir" ;;
    stop) halt_rabbitmq "$dir" TERM ;;
    kill) halt_rabbitmq "$dir" KILL ;;
    ctl)
        rabbitmq_environment "$dir"
        exec "$RABBITMQ_BIN/rabbitmqctl" "${@:3}"
        ;;
    *) echo "unknown verb: $verb" >&2 && exit 64 ;;
    esac
fi
