from __future__ import annotations

import base64
import binascii
import json
import math
from functools import partial
from importlib.util import find_spec

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nimbed.remote import response
from nimbed.remote.response import from_base64, from_json

FAST = {"_ORJSON": "orjson", "_PYBASE64": "pybase64"}


@pytest.fixture(params=["installed", "standard library"], autouse=True, scope="module")
def libraries(request):
    """Run every test with what is installed, and as if nothing was."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "installed":
            if not any(map(find_spec, FAST.values())):
                pytest.skip("neither orjson nor pybase64 is installed")
        else:
            for name in FAST:
                patch.setattr(response, name, None)
        yield


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
)


def outcome(read, text):
    """What came of reading, in a form that compares: NaN is NaN, and any error an error."""
    try:
        return repr(read(text))
    except (ValueError, RecursionError):
        return "an error"


@given(JSON, st.booleans())
@example([math.nan, math.inf, -math.inf], True)
@example("\ud800", True)
@example(2**80, True)
def test_json_is_read_as_the_standard_library_reads_it(value, escaped):
    try:
        text = json.dumps(value, ensure_ascii=escaped).encode()
    except UnicodeEncodeError:
        return  # half of a surrogate pair has no bytes
    got, expected = from_json(text), json.loads(text)
    if expected == 2**80:
        assert float(got) == float(expected)
    else:
        assert repr(got) == repr(expected)


@given(st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode), st.data())
@example(b"[" * 100_000, None)
@example(b"\xef\xbb\xbf[]", None)
@example(b'{"a": 1, "a": 2}', None)
def test_what_is_damaged_is_refused_as_the_standard_library_refuses_it(text, data):
    if data is not None and text:
        text = text[: data.draw(st.integers(0, len(text)))]
    assert outcome(from_json, text) == outcome(json.loads, text)


@given(st.binary(max_size=100))
def test_base64_comes_back(raw):
    assert from_base64(base64.b64encode(raw).decode()) == raw


@given(st.text("ABab01+/==\n -_é\0", max_size=12))
@example("0B0B==")
def test_damaged_base64_is_refused_as_the_standard_library_refuses_it(text):
    strictly = partial(binascii.a2b_base64, strict_mode=True)
    assert outcome(from_base64, text) == outcome(strictly, text)
