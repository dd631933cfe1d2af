#!/usr/bin/env python3
"""How much ingress the nodes take together: with one queue, and with partitions.

    . tests/support/rabbitmq.sh; start_rabbitmq; python3 benches/ingress.py target/release/warren; stop_rabbitmq

Each node gets the same small share of a processor (cgroup v1, as root), so that the nodes and not the broker or this
program are what is slow. A backlog is published without a pause; the figure is the rate at which the nodes settle it, from
a tenth to nine tenths of it. `users` are connected, evenly to the nodes: half of what one of two nodes takes has to go to the
other. A `channel` without subscribers shows the work of ingress alone. Needs pika.
"""

import http.client
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pika

URL = os.environ["WARREN_TEST_AMQP_URL"] + "/%2f"
SHARE = float(os.environ.get("SHARE", "0.15"))  # of one processor, for each node
MESSAGES = int(os.environ.get("MESSAGES", "20000"))
USERS = 200
CGROUP = Path("/sys/fs/cgroup/cpu")


class Node:
    def __init__(self, binary, prefix, index, partitions, folder):
        self.port, self.admin = free_port(), free_port()
        self.group = CGROUP / f"warren-bench-{os.getpid()}-{index}"
        self.group.mkdir()
        (self.group / "cpu.cfs_quota_us").write_text(str(int(100_000 * SHARE)))
        settings = {
            "NODE_ID": f"node{index}",
            "PREFIX": prefix,
            "LISTEN": f"127.0.0.1:{self.port}",
            "ADMIN_LISTEN": f"127.0.0.1:{self.admin}",
            "AMQP_URL": URL,
            "AUTH": "insecure",
            "WORKERS": "1",
            "INGRESS_PARTITIONS": str(partitions),
        }
        log = open(folder / f"{prefix}-{index}.log", "wb")
        self.process = subprocess.Popen(
            [binary], stdout=log, stderr=log, env={f"WARREN_{key}": value for key, value in settings.items()}
        )
        until("a node is ready", lambda: self.get("/readyz")[0] == 200)

    def throttle(self):
        (self.group / "cgroup.procs").write_text(str(self.process.pid))

    def get(self, path):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""

    def sum(self, name):
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def settled(self):
        return self.sum('warren_messages_settled_total{door="ingress"')

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.kill()
        self.process.wait()
        until("its group is empty", lambda: not (self.group / "cgroup.procs").read_text().strip())
        self.group.rmdir()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, holds, patience=60):
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)


def connect(nodes):
    """The users, read and thrown away by a thread."""
    sockets = []
    for user in range(USERS):
        port = nodes[user % len(nodes)].port
        one = socket.create_connection(("127.0.0.1", port))
        one.sendall(
            f"GET /ws?user=u{user} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert b" 101 " in one.recv(4096)
        sockets.append(one)
    stopped = threading.Event()

    def drain():
        while not stopped.is_set():
            try:
                for one in select.select(sockets, [], [], 0.2)[0]:
                    one.recv(65536)
            except (OSError, ValueError):
                return  # Closed at the end of the run.

    threading.Thread(target=drain, daemon=True).start()
    return sockets, stopped


def measure(binary, folder, prefix, count, partitions, kind):
    nodes = []
    try:
        for index in range(count):
            nodes.append(Node(binary, prefix, index, partitions, folder))
        if partitions > 1:
            held = lambda: [node.sum("warren_ingress_partitions_held") for node in nodes]
            until("all partitions are shared", lambda: sum(held()) == partitions)
        sockets, stopped = connect(nodes)
        until("all users are there", lambda: sum(node.sum("warren_sessions ") for node in nodes) == USERS)
        for node in nodes:
            node.throttle()
        connection = pika.BlockingConnection(pika.URLParameters(URL))
        channel = connection.channel()
        busy, begun = [node.cpu() for node in nodes], None
        for number in range(MESSAGES):
            key = f"user.u{number % USERS}" if kind == "users" else f"channel.c{number % USERS}"
            channel.basic_publish(f"{prefix}.ingress", key, b'{"n":%d}' % number)
        connection.close()
        while True:
            settled = [node.settled() for node in nodes]
            now = time.monotonic()
            if begun is None and sum(settled) >= MESSAGES * 0.1:
                begun = (now, sum(settled), [node.cpu() for node in nodes], settled)
            if sum(settled) >= MESSAGES * 0.9:
                break
            time.sleep(0.2)
        rate = (sum(settled) - begun[1]) / (now - begun[0])
        busy = [node.cpu() - before for node, before in zip(nodes, begun[2])]
        took = [int(after - before) for after, before in zip(settled, begun[3])]
        stopped.set()
        for one in sockets:
            one.close()
        return rate, took, busy
    finally:
        for node in nodes:
            node.end()


def main():
    binary = sys.argv[1]
    folder = Path(tempfile.mkdtemp(prefix="warren-bench-"))
    print(f"{MESSAGES} messages, each node {SHARE:.0%} of a processor; logs in {folder}")
    print("| to | nodes | partitions | settled a second | × | by each node | processor seconds of each |")
    print("|---|---|---|---|---|---|---|")
    for kind in ["channel", "users"]:
        one = None
        for run, (count, partitions) in enumerate([(1, 1), (2, 1), (2, 4)]):
            rate, took, busy = measure(binary, folder, f"{kind[0]}{run}", count, partitions, kind)
            one = one or rate
            seconds = ", ".join(f"{spent:.2f}" for spent in busy)
            each = ", ".join(str(each) for each in took)
            print(f"| {kind} | {count} | {partitions} | {rate:.0f} | {rate / one:.2f} | {each} | {seconds} |", flush=True)


main()
