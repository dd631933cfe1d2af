# A private RabbitMQ for ./test and ./cluster, which source this file: start_rabbitmq [PORTS]; ...; stop_rabbitmq
# (put stop_rabbitmq into an EXIT trap first). `broker.sh` runs the broker itself.

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

# Prints the port $1, or another one if something listens there.
port_or_another() { if port_is_open "$1"; then free_ports 1; else echo "$1"; fi; }

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

install_rabbitmq() {
    if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing rabbitmq-server" >&2
        apt-get update -qq >&2
        # RUNLEVEL=1: installed, not started. The broker of the machine is none of our business.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq rabbitmq-server curl >/dev/null
    else
        echo "install rabbitmq-server (3.10 or newer), or set WARREN_TEST_AMQP_URL and" \
            "WARREN_TEST_MANAGEMENT_URL" >&2
        return 1
    fi
}

# Exports WARREN_TEST_AMQP_URL and WARREN_TEST_MANAGEMENT_URL. Arguments: the ports of AMQP and of the management plugin, if
# they are free.
start_rabbitmq() {
    install_rabbitmq
    local ports deadline=$((SECONDS + 120))
    read -ra ports <<<"$(free_ports 4)"
    [ -z "${1-}" ] || ports[0]=$(port_or_another "$1")
    [ -z "${2-}" ] || ports[1]=$(port_or_another "$2")
    rabbitmq_dir=$(mktemp -d "${TMPDIR:-/tmp}/warren-rabbitmq.XXXXXX")
    # A process group of its own: Ctrl-C in the terminal is not for it, and one kill ends it whole.
    setsid tests/support/broker.sh "$rabbitmq_dir" "${ports[@]}" >"$rabbitmq_dir/out" 2>&1 </dev/null &
    rabbitmq_pid=$!
    export WARREN_TEST_AMQP_URL="amqp://guest:guest@127.0.0.1:${ports[0]}"
    export WARREN_TEST_MANAGEMENT_URL="http://guest:guest@127.0.0.1:${ports[1]}"
    until port_is_open "${ports[0]}" &&
        curl -fsS -o /dev/null "$WARREN_TEST_MANAGEMENT_URL/api/overview" 2>/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ] || ! process_runs "$rabbitmq_pid"; then
            echo "RabbitMQ did not start; the end of its output:" >&2
            tail -n 30 "$rabbitmq_dir/out" >&2
            return 1
        fi
        sleep 0.2
    done
}

# Without ceremony, since its data goes away as well. May be called twice, and when nothing was started.
stop_rabbitmq() {
    [ -n "${rabbitmq_pid:-}" ] || return 0
    kill -KILL -- "-$rabbitmq_pid" 2>/dev/null || true
    wait "$rabbitmq_pid" 2>/dev/null || true
    rm -rf "$rabbitmq_dir"
    rabbitmq_pid=
}
