"""What openapi.yaml says in prose alone, for requests that are meant to be good."""

import os

import schemathesis


def is_short(name):
    return len(str(name).encode("utf-8", "surrogatepass")) <= 128


def targets(body):
    messages = body if isinstance(body, list) else [body]
    return [message.get("to", "") for message in messages if isinstance(message, dict)]


@schemathesis.hook
def before_load_schema(context, schema):
    """A node without a key believes everybody."""
    if os.environ.get("WARREN_TEST_INSECURE"):
        schema.pop("security", None)
        for path in schema["paths"].values():
            for operation in path.values():
                if isinstance(operation, dict):
                    operation.pop("security", None)


@schemathesis.hook
def filter_case(context, case):
    """Names are limited in bytes, where a schema counts characters."""
    names = list((case.path_parameters or {}).values())
    if case.path.endswith("/messages"):
        for target in targets(case.body):
            names.append(str(target).partition(".")[2])
    return all(map(is_short, names))


@schemathesis.hook
def before_call(context, case, kwargs):
    """Idempotency-Key is the id of one message."""
    if isinstance(case.body, list) and case.headers and case.meta and case.meta.generation.mode.is_positive:
        case.headers.pop("Idempotency-Key", None)
