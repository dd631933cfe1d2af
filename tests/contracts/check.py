"""Holds what was seen against the documents: check.py < LINES, each a JSON object.

    {"schema": "schemas/frames.schema.json#/$defs/client", "value": ...}     is as the schema says
    {"schema": ..., "value": ..., "bad": true}                               is not
    {"operation": "GET /v1/users/{id}", "status": 200, "headers": {...}, "body": "..."}     an answer of HTTP

and with {"all_of": SCHEMA}: every leaf of it was seen. What the documents do not mention is a finding as well: objects are closed here,
although clients must ignore fields that they do not know.
"""

import copy, json, pathlib, sys

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of a schema that is part of another one: only the whole knows all properties.
PARTS = ("allOf", "oneOf", "anyOf")


def closed(schema, is_part=False):
    """The same schema, in which an object has no other properties than those that are described."""
    if not isinstance(schema, dict):
        return schema
    for key in PARTS:
        for part in schema.get(key, []):
            closed(part, True)
    for key in ("properties", "$defs", "patternProperties"):
        for part in schema.get(key, {}).values():
            closed(part)
    for key in ("items", "additionalProperties"):
        closed(schema.get(key))
    if schema.get("type") == "object" and "additionalProperties" not in schema and not is_part:
        schema["unevaluatedProperties"] = False
    return schema


def opened(schema):
    """What another schema builds on with $ref is a part of it."""
    for name in ("outcome", "settlement", "publish"):
        schema.get("$defs", {}).get(name, {}).pop("unevaluatedProperties", None)
    return schema


def load(path):
    text = (ROOT / path).read_text()
    return json.loads(text) if path.endswith(".json") else yaml.safe_load(text)


def retrieve(uri):
    path = uri.removeprefix("file:///")
    schema = load(path)
    if path == "openapi.yaml":
        components = schema["components"]["schemas"]
        schema = {"components": {"schemas": {name: closed(part) for name, part in components.items()}}}
        schema["components"]["schemas"]["Readiness"].pop("unevaluatedProperties", None)
    else:
        schema = closed(schema)
        if "values" in path:
            schema = opened(schema)
    return Resource.from_contents(schema, default_specification=DRAFT202012)


REGISTRY = Registry(retrieve=retrieve)
VALIDATORS = {}


def validator(reference):
    if reference not in VALIDATORS:
        schema = {"$ref": "file:///" + reference}
        # Values that others build on are closed where they stand alone.
        if reference.startswith("schemas/"):
            schema["unevaluatedProperties"] = False
        VALIDATORS[reference] = Draft202012Validator(schema, registry=REGISTRY)
    return VALIDATORS[reference]


def problems(validator, value):
    return [f"{error.json_path}: {error.message}" for error in best(validator.iter_errors(value))]


def best(errors):
    """The most telling errors: those of a choice are in its branches."""
    for error in errors:
        yield error
        yield from sorted(error.context, key=lambda inner: -len(inner.path))[:3]


def leaves(reference, found):
    """The references that a choice of references ends in."""
    path, _, pointer = reference.partition("#")
    schema = load(path)
    for part in pointer.split("/")[1:]:
        schema = schema[part]
    choices = [choice["$ref"] for choice in schema.get("oneOf", []) if "$ref" in choice]
    if not choices:
        found.append(reference)
    for choice in choices:
        leaves(path + choice if choice.startswith("#") else choice, found)
    return found


OPENAPI = load("openapi.yaml")


def resolved(part):
    while "$ref" in part:
        document, _, pointer = part["$ref"].partition("#/")
        assert document == "", part
        part = OPENAPI
        for name in pointer.split("/"):
            part = part[name]
    return part


def absolute(part):
    """The same with references that do not depend on where they stand."""
    if isinstance(part, list):
        return [absolute(item) for item in part]
    if not isinstance(part, dict):
        return part
    part = {key: absolute(value) for key, value in part.items()}
    if "$ref" in part:
        reference = part["$ref"]
        part["$ref"] = "file:///" + ("openapi.yaml" + reference if reference.startswith("#") else reference)
    return part


def answer_problems(answer):
    method, path = answer["operation"].split(" ")
    operation = OPENAPI["paths"][path][method.lower()]
    documented = operation["responses"].get(str(answer["status"]))
    if documented is None:
        return [f"the status {answer['status']} is not documented"]
    documented = resolved(documented)
    found = []
    for name, header in documented.get("headers", {}).items():
        header, value = resolved(header), answer["headers"].get(name.lower())
        if value is None and header.get("required"):
            found.append(f"the header {name} is missing")
        elif value is not None:
            found += problems(Draft202012Validator(header["schema"]), value)
    kinds, kind = documented.get("content", {}), answer["headers"].get("content-type")
    if kind is None and answer["body"] == "" and not kinds:
        return found
    if kind not in kinds:
        return found + [f"the content type {kind} is not documented"]
    schema = closed(absolute(copy.deepcopy(kinds[kind]["schema"])))
    body = json.loads(answer["body"]) if kind.startswith("application/json") else answer["body"]
    return found + problems(Draft202012Validator(schema, registry=REGISTRY), body)


def main():
    findings, seen, wanted, count = [], set(), [], 0
    for line in map(json.loads, sys.stdin):
        if "all_of" in line:
            wanted += leaves(line["all_of"], [])
            continue
        count += 1
        if "operation" in line:
            found = answer_problems(line)
            seen.add(f"{line['operation']} {line['status']}")
        else:
            found = problems(validator(line["schema"]), line["value"])
            if line.get("bad"):
                found = [] if found else [f"is taken by {line['schema']}"]
            else:
                for leaf in leaves(line["schema"], []):
                    if leaf not in seen and validator(leaf).is_valid(line["value"]):
                        seen.add(leaf)
        if found:
            findings.append(f"{json.dumps(line)[:600]}\n    " + "\n    ".join(found[:6]))
    findings += [f"never seen: {leaf}" for leaf in wanted if leaf not in seen]
    print("\n".join(findings))
    print(f"{count} values, {len(seen)} kinds, {len(findings)} findings")
    sys.exit(1 if findings or count == 0 else 0)


main()
