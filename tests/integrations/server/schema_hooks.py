"""What a JSON schema cannot say, for schemathesis: two fields that must fit each other."""

from __future__ import annotations

import schemathesis


@schemathesis.hook
def filter_case(context, case):
    """Leave out arrays of modalities that are neither one word nor a word an input."""
    body = case.body
    if not isinstance(body, dict) or not isinstance(body.get("modality"), list):
        return True
    inputs = body.get("input")
    count = len(inputs) if isinstance(inputs, list) else 1
    return len(body["modality"]) in (1, count)
