"""The form's schema with what a page shows beside each field: its group, its unit and a sentence of help.

Why: a page is made of it, so that it can't know other fields, limits or words than the server; and it is a
fifth of the whole OpenAPI document, which has it as well.

Known gap: none.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dpipectl.http.answers import document
from dpiped.form_help import HELP
from dpiped.messages import Form


async def schema(request: Request) -> Response:
    """JSON Schema of the form."""
    del request
    made: dict[str, Any] = msgspec.json.schema(Form)["$defs"]["Form"]
    explain(made)
    return document(made)


def explain(schema: dict[str, Any]) -> None:
    """Adds group, unit and help. Fields that the form does not have are ignored by the server."""
    schema.pop("additionalProperties", None)
    for name, property_ in schema["properties"].items():
        known = HELP[name]
        property_["description"] = known.text
        property_["x-group"] = known.group
        if known.unit is not None:
            property_["x-unit"] = known.unit
