#!/bin/sh
# One private RabbitMQ: everything it writes is under DIR, and it shares no name, port or cookie with another.
#
#   broker.sh DIR AMQP_PORT MANAGEMENT_PORT DIST_PORT EPMD_PORT            run it in the foreground
#   broker.sh DIR AMQP_PORT MANAGEMENT_PORT DIST_PORT EPMD_PORT ctl ARG…   rabbitmqctl
#
# With BROKER_MQTT_PORT and BROKER_STOMP_PORT it speaks MQTT and STOMP as well. With BROKER_PLAIN it has no
# consistent-hash exchange. With BROKER_TLS_PORT it speaks TLS there, by ca.pem, node.pem and node.key in DIR, and takes a
# certificate for a password (EXTERNAL).
#
# Its processes stay in the process group of this script, so that one kill ends them all.
set -eu
dir=$1 amqp=$2 management=$3 dist=$4 epmd=$5
shift 5

bin=
for candidate in /usr/lib/rabbitmq/bin /usr/local/sbin /opt/rabbitmq/sbin /opt/homebrew/opt/rabbitmq/sbin; do
    # Not the wrapper in /usr/sbin: it changes the user, and with it loses the limit of open files.
    [ -x "$candidate/rabbitmq-server" ] && bin=$candidate && break
done
[ -n "$bin" ] || { echo "rabbitmq-server is not installed" >&2; exit 1; }

export HOME="$dir"
export ERL_EPMD_PORT="$epmd" ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_NODENAME="warren-$amqp@localhost"
export RABBITMQ_NODE_PORT="$amqp" RABBITMQ_DIST_PORT="$dist"
export RABBITMQ_CONF_ENV_FILE=/dev/null
export RABBITMQ_MNESIA_BASE="$dir/data" RABBITMQ_LOG_BASE="$dir/log"
export RABBITMQ_PID_FILE="$dir/pid" RABBITMQ_GENERATED_CONFIG_DIR="$dir/config"
export RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins"
# One scheduler that does not spin: the tests need the processor more.
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"

if [ "${1-}" = ctl ]; then
    shift
    exec "$bin/rabbitmqctl" -q "$@"
fi

mkdir -p "$dir/log"
plugins=rabbitmq_management
[ -n "${BROKER_PLAIN-}" ] || plugins="$plugins,rabbitmq_consistent_hash_exchange"
[ -z "${BROKER_MQTT_PORT-}" ] || plugins="$plugins,rabbitmq_mqtt,rabbitmq_stomp"
[ -z "${BROKER_TLS_PORT-}" ] || plugins="$plugins,rabbitmq_auth_mechanism_ssl"
echo "[$plugins]." >"$dir/enabled_plugins"
cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.default = 127.0.0.1:$amqp
management.tcp.ip = 127.0.0.1
management.tcp.port = $management
management.rates_mode = none
collect_statistics_interval = 1000
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
CONF
if [ -n "${BROKER_MQTT_PORT-}" ]; then
    cat >>"$dir/rabbitmq.conf" <<CONF
mqtt.listeners.tcp.default = 127.0.0.1:$BROKER_MQTT_PORT
stomp.listeners.tcp.default = 127.0.0.1:$BROKER_STOMP_PORT
CONF
fi
if [ -n "${BROKER_TLS_PORT-}" ]; then
    cat >>"$dir/rabbitmq.conf" <<CONF
listeners.ssl.default = 127.0.0.1:$BROKER_TLS_PORT
ssl_options.cacertfile = $dir/ca.pem
ssl_options.certfile = $dir/node.pem
ssl_options.keyfile = $dir/node.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
CONF
fi
epmd -port "$epmd" -address 127.0.0.1 >/dev/null 2>&1 &
exec "$bin/rabbitmq-server"
