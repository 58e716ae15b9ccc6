from __future__ import annotations

import inspect
import json
import pickle

import pytest

from nimbed import errors


def test_the_tree_holds_every_error_and_the_docstring_draws_it():
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == "nimbed.errors"
    ]
    assert sorted(kind.__name__ for kind in kinds) == sorted(errors.__all__)
    for kind in kinds:
        assert issubclass(kind, errors.NimbedError)
        assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.InputError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.BackendError, RuntimeError),
    ],
)
def test_errors_are_also_what_python_calls_them(kind, builtin):
    assert issubclass(kind, builtin)


def test_rows_and_server_facts_survive_a_process_border():
    error = pickle.loads(pickle.dumps(errors.InputError("bad", rows=[3, 5])))
    assert (str(error), error.rows) == ("bad", (3, 5))
    sent = errors.OverloadedError(
        "busy", status=503, retry_after=2.5, retryable=True, rows=[1], request_id="r", code="c"
    )
    got = pickle.loads(pickle.dumps(sent))
    assert type(got) is errors.OverloadedError
    assert (got.status, got.retry_after, got.retryable, got.rows) == (503, 2.5, True, (1,))
    assert (got.request_id, got.code, str(got)) == ("r", "c", "busy")


def test_a_text_that_is_too_long_says_by_how_much():
    made = errors.TooLongError(lengths=[548], limit=512, rows=[3], mend="split the text")
    error = pickle.loads(pickle.dumps(made))
    assert (error.length, error.limit, error.rows) == (548, 512, (3,))
    assert str(error) == (
        "input length 548 exceeds maximum allowed token size 512 (row 3); split the text"
    )


def test_each_of_several_inputs_has_a_sentence_of_its_own():
    made = errors.TooLongError(
        lengths=[600, 90_000], limit=512, rows=[3, 7], mend="split the text", untokenized=[7]
    )
    errors.renumber(made, range(10, 20))
    error = pickle.loads(pickle.dumps(made))
    assert error.rows == (13, 17)
    assert error.about(0, "line 14") == (
        "input length 600 exceeds maximum allowed token size 512 (line 14); split the text"
    )
    assert error.about(1) == (
        "input length 90000 exceeds maximum allowed token size 512; its characters were counted, "
        "which are too many to tokenize; split the text"
    )
    blank = errors.InputError("a text must not be blank; rows 3, 7 is; leave it out", rows=[3, 7])
    assert blank.about(1, "line 8") == "a text must not be blank; line 8 is; leave it out"
    assert blank.about(1) == "a text must not be blank; it is; leave it out"


def test_a_missing_extra_comes_with_its_pip_line():
    error = errors.missing_extra("llama-index", needs="llama-index-core")
    assert str(error).endswith(f"; run: {errors.install_line('llama-index')}")


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'nimbed[light]'"),
        (
            {"url": "https://index.example/nimbed.whl", "archive_info": {}},
            "pip install 'nimbed[light]'",
        ),
        ({"url": "file:///src/nimbed", "dir_info": {}}, "pip install 'nimbed[light]'"),
        (
            {"url": "file:///my%20src/nimbed", "dir_info": {"editable": True}},
            "/venv/bin/python -m pip install -e '/my src/nimbed[light]'",
        ),
    ],
)
def test_an_extra_is_added_to_the_installation_that_runs(origin, line, tmp_path, monkeypatch):
    facts = tmp_path / "nimbed-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.4\nName: nimbed\nVersion: 1\n")
    if origin is not None:
        (facts / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.executable", "/venv/bin/python")
    assert errors.install_line("light") == line


def test_long_lists_of_rows_are_cut_in_messages():
    assert errors.name_rows([4]) == "row 4"
    assert errors.name_rows([1, 2]) == "rows 1, 2"
    assert errors.name_rows(range(9)) == "rows 0, 1, 2, 3, 4, …"
