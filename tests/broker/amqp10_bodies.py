"""Sends one message of each kind by AMQP 1.0 (python-qpid-proton), and prints the settlements that were asked for."""
import json
import sys

from proton import Message, int32
from proton.utils import BlockingConnection

connection = BlockingConnection(f"amqp://guest:guest@{sys.argv[1]}:{sys.argv[2]}", allowed_mechs="PLAIN")
settlements = connection.create_receiver("/queues/billing%20settled")
sender = connection.create_sender("/exchanges/warren.ingress/user.42")
for message in [
    Message(body="hello"),
    Message(body=[1, None, True, 1.5, "x", int32(-5)]),
    Message(body={"a": {"b": []}}, content_type="application/json"),
    Message(body='{"json": 1}', content_type="application/json"),
    Message(body=b"\x00\xff"),
    Message(body=b'{"data": 1}', inferred=True),  # a data section
    Message(body=[1, 2], inferred=True),  # an amqp-sequence
    Message(body=b"null", inferred=True),
    Message(body=7),
    Message(body={int32(1): True}),
]:
    sender.send(message)


def settled(**fields):
    sender.send(Message(reply_to="/queues/billing%20settled", correlation_id=b"\x01\xfe", **fields))
    answer = settlements.receive(timeout=10)
    settlements.accept()
    print(json.dumps({**json.loads(bytes(answer.body)), "correlation": answer.correlation_id}))


for _ in range(2):
    settled(body="id", id=b"\xff\x00", properties={"x-basic-type": "named"})
settled(body="long", id="x" * 300)
sender.send(Message(body="last"))
connection.close()
