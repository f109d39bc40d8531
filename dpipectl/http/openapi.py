"""The OpenAPI 3.1 document, made of the operations and the message types.

Why: who writes a page or a script against this server reads one document, and a test can hold the server to
every word of it.

Known gap: none.
"""

from typing import Any

import msgspec

import dpiped
from dpipectl.http import form_schema
from dpipectl.http.answers import Detail
from dpipectl.http.operations import ALL, JSON, Answer, Operation, Parameter

REF = "#/components/schemas/{name}"
ERRORS = {
    400: "A path that may not be used, or a training that is running already.",
    401: "The token is missing or wrong.",
    403: "The request is addressed to another name, or comes from another site's page.",
    404: "There is no such run.",
    409: "Not now, or not with this run.",
    413: "The body is too large.",
    422: "The request does not fit the schema; each field is named.",
    500: "The server's fault: deepspeed or train.py is missing, or the training could not be launched.",
    503: "The daemon does not answer.",
}
ALWAYS = (403, 503)


def make(root_path: str, needs_token: bool) -> dict[str, Any]:
    """The document for a server whose operations lie below `root_path`."""
    types = {answer.type for each in ALL for answer in each.answers.values() if answer.type is not None}
    types |= {
        kind
        for each in ALL
        for answer in each.answers.values()
        for kind in answer.events.values()
        if kind not in (None, str)
    }
    types |= {each.body for each in ALL if each.body is not None} | {Detail}
    ordered = sorted(types, key=lambda kind: str(kind.__name__))
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REF)
    named = dict(zip(ordered, schemas, strict=True))
    form_schema.explain(components["Form"])
    _without_prefix_items(components)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "dpiped",
            "version": dpiped.__version__,
            "description": "Starts, watches, stops and resumes the one training of this machine.",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": {},
        "components": {"schemas": components},
    }
    for each in ALL:
        document["paths"].setdefault(each.path, {})[each.method.lower()] = _operation(
            each, named, needs_token
        )
    if needs_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _operation(each: Operation, named: dict[Any, Any], needs_token: bool) -> dict[str, Any]:
    guarded = needs_token and not each.open
    errors = sorted({*each.errors, *ALWAYS, *((401,) if guarded else ())})
    made: dict[str, Any] = {
        "operationId": each.name,
        "summary": each.text,
        "responses": {str(status): _answer(answer, named) for status, answer in each.answers.items()}
        | {str(status): _answer(Answer(ERRORS[status], Detail), named) for status in errors},
    }
    if each.parameters:
        made["parameters"] = [_parameter(parameter) for parameter in each.parameters]
    if each.body is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": named[each.body]}}}
    if guarded:
        made["security"] = [{"token": []}]
    return made


def _answer(answer: Answer, named: dict[Any, Any]) -> dict[str, Any]:
    if answer.type is None and answer.media == JSON:
        return {"description": answer.text}
    schema = named[answer.type] if answer.type is not None else {"type": "string"}
    if answer.events:
        schema = {"oneOf": [_event(name, kind, named) for name, kind in answer.events.items()]}
    return {"description": answer.text, "content": {answer.media: {"schema": schema}}}


def _event(name: str, kind: Any, named: dict[Any, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "string"}
    if kind is not None:
        content = {"type": "string"} if kind is str else named[kind]
        data |= {"contentMediaType": JSON, "contentSchema": content}
    properties = {"event": {"const": name}, "data": data, "id": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required or parameter.where == "path",
        "description": parameter.text,
        "schema": parameter.schema,
    }


def _without_prefix_items(schema: Any) -> None:
    """Lists of a fixed length in words that readers of older drafts know too, schemathesis for one."""
    if isinstance(schema, list):
        for each in schema:
            _without_prefix_items(each)
    elif isinstance(schema, dict):
        prefix = schema.pop("prefixItems", None)
        if isinstance(prefix, list):
            kinds = [each for at, each in enumerate(prefix) if each not in prefix[:at]]
            schema["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        for each in schema.values():
            _without_prefix_items(each)
