"""Where settings come from, which of two wins, and that a wrong one is named by its place."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from nimbed.errors import ConfigurationError
from nimbed_cli.main import app
from nimbed_server import Settings, gather
from nimbed_server.settings import flag_of, unused

SECRET = "nvapi-very-secret"


def write(folder, text):
    path = folder / "nimbed.toml"
    path.write_text(text)
    return path


def test_flags_go_before_ours_before_nims_before_the_file(tmp_path):
    file = write(tmp_path, "max_queue = 1\nmax_items = 1\nport = 1\nhost = '1.1.1.1'")
    environment = {
        "NIM_MAX_QUEUE_SIZE": "2",
        "NIM_HTTP_API_PORT": "2",
        "NIMBED_MAX_QUEUE": "3",
        "NIMBED_PORT": "3",
    }
    found = gather({"port": 4, "host": None}, environment=environment, file=file)
    assert (found.port, found.max_queue, found.max_items, found.host) == (4, 3, 1, "1.1.1.1")
    without = {name: value for name, value in environment.items() if "NIMBED" not in name}
    found = gather({}, environment=without, file=file)
    assert (found.port, found.max_queue) == (2, 2)


@pytest.mark.parametrize(
    ("variable", "value", "setting", "meant"),
    [
        ("NIM_HTTP_API_PORT", "9000", "port", 9000),
        ("NIM_SERVER_BIND_ADDR", "0.0.0.0:9000", "port", 9000),
        ("NIM_SERVER_BIND_ADDR", "[::1]:9000", "host", "::1"),
        ("NIM_BIND_ADDR", ":9000", "host", "0.0.0.0"),
        ("NIM_MAX_WAIT_MS", "5", "max_wait_ms", 5.0),
        ("NIM_SERVER_MAX_WAIT_MS", "5", "max_wait_ms", 5.0),
        ("NIM_SERVER_MAX_QUEUE_SIZE", "7", "max_queue", 7),
        ("NIM_REQUEST_TIMEOUT_S", "7", "request_timeout_s", 7.0),
        ("NIM_SERVER_REQUEST_TIMEOUT_S", "7", "request_timeout_s", 7.0),
        ("NIM_SERVED_MODEL_NAME", "a,b", "served_names", ("a", "b")),
        ("NIM_ENGINE_PRECISION", "bf16", "dtype", "bfloat16"),
        ("NIM_MAX_IMAGE_BYTES", "9", "max_image_bytes", 9),
        ("NIM_SERVER_HTTP_BODY_LIMIT_BYTES", "9", "max_body_bytes", 9),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("LOG_FORMAT", "Pretty", "log_format", "pretty"),
        ("NIMBED_API_KEYS", "one,two", "api_keys", ("one", "two")),
        ("NIMBED_STRICT_NIM", "yes", "strict_nim", True),
        ("NIMBED_STRICT_NIM", "0", "strict_nim", False),
        ("NIMBED_TRUNCATE", "END", "truncate", "END"),
        ("NIMBED_PORT", "", "port", 8000),
    ],
)
def test_a_variable_means_a_setting(variable, value, setting, meant):
    models = ("a", "b") if setting == "served_names" else ()
    found = gather({"models": models}, environment={variable: value})
    assert getattr(found, setting) == meant


def test_aliases_come_from_everywhere(tmp_path):
    text = "small=m,dimensions=16"
    file = write(tmp_path, f'aliases = ["{text}"]')
    by_flag = gather({"aliases": [text]}, environment={})
    by_variable = gather({}, environment={"NIMBED_ALIASES": f"{text};"})
    by_file = gather({}, environment={}, file=file)
    assert by_flag.aliases == by_variable.aliases == by_file.aliases
    assert by_flag.aliases[0].fixed.dimensions == 16


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_a_variable_and_a_key_of_the_file(tmp_path, field):
    for given in (
        {"environment": {f"NIMBED_{field.name.upper()}": "x"}},
        {"environment": {}, "file": write(tmp_path, f"{field.name} = 'x'")},
    ):
        try:
            found = gather({}, **given)
        except ConfigurationError:
            continue  # it was read, and an x means nothing there
        assert "x" in getattr(found, field.name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_quue = 3", "nimbed.toml: 'max_quue' is not a setting; did you mean max_queue?"),
        ("max_queue = 'many'", "nimbed.toml: max_queue must be a whole number; got 'many'"),
        ("max_queue = ", "nimbed.toml is not TOML"),
        ("aliases = ['a=m,size=3']", "nimbed.toml: aliases: alias 'a': an option is one of"),
        ("strict_nim = 'perhaps'", "nimbed.toml: strict_nim must be true or false; got 'perhaps'"),
        ("models = 3", "nimbed.toml: models must be a list; got 3"),
        ("port = 70000", "port must be from 0 to 65535; got 70000"),
        ("max_queue = 0", "max_queue must be positive; got 0"),
        ("tls_cert = 'a'", "https needs both"),
        ("input_type = 'document'", "input_type must be one of"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, reason):
    with pytest.raises(ConfigurationError, match=reason.replace("?", r"\?")):
        gather({}, environment={}, file=write(tmp_path, text))


def test_a_wrong_variable_or_flag_is_named(tmp_path):
    with pytest.raises(
        ConfigurationError, match="NIM_MAX_QUEUE_SIZE must be a whole number; got 'many'"
    ):
        gather({}, environment={"NIM_MAX_QUEUE_SIZE": "many"})
    with pytest.raises(ConfigurationError, match="--max-queue must be a whole number; got 'many'"):
        gather({"max_queue": "many"}, environment={})
    with pytest.raises(ConfigurationError, match=r"cannot read .*nothing\.toml"):
        gather({}, environment={}, file=tmp_path / "nothing.toml")


def test_a_key_is_never_shown(tmp_path):
    found = gather({"api_keys": [SECRET]}, environment={})
    assert SECRET not in repr(found)
    assert SECRET not in json.dumps(found.shown())
    with pytest.raises(ConfigurationError) as shown:
        gather({}, environment={}, file=write(tmp_path, "api_keys = 271828"))
    assert "271828" not in str(shown.value)


def test_variables_without_effect_are_named_with_the_reason():
    assert list(unused({"NIM_PERFORMANCE_MODE": "1", "PATH": "/"})) == ["NIM_PERFORMANCE_MODE"]


def check(*flags, **environment):
    return CliRunner().invoke(app, ["serve", "--check", *flags], env=environment)


def test_check_prints_the_settings_without_keys_and_starts_nothing(tmp_path):
    file = write(tmp_path, "max_queue = 5")
    result = check(
        *("--config", str(file), "--alias", "small=minilm,embedding_type=int8"),
        *("--api-key", SECRET, "--port", "9000"),
        NIM_MAX_WAIT_MS="3",
    )
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    shown = json.loads(result.stdout)
    assert shown["api_keys"] == ["(1 given)"]
    assert (shown["port"], shown["max_queue"], shown["max_wait_ms"]) == (9000, 5, 3.0)
    assert shown["aliases"][0]["name"] == "small"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--alias", "small=nobody"), "stands for 'nobody', which is not served"),
        (("--alias", "small=minilm,dimensions=17"), "17"),
        (("--model", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--served-name", "a", "--served-name", "b"), "more served_names than models"),
        (("--log-level", "loud"), "log_level must be"),
    ],
)
def test_check_says_what_is_wrong_and_fails(flags, reason):
    result = check(*flags)
    assert result.exit_code != 0
    assert reason in " ".join((result.output + str(result.exception)).split())


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_a_flag_with_its_help_and_its_default(field):
    shown = CliRunner().invoke(app, ["serve", "--help"], terminal_width=200)
    assert shown.exit_code == 0
    words = " ".join(shown.output.split())
    said = words.split(f" {flag_of(field.name)} ")[1].split(" --")[0]
    assert field.metadata["help"].split(" --")[0] in said
    if isinstance(field.default, (str, int)) and field.default is not False:
        assert f"Default: {field.default}." in said


def test_a_flag_that_does_not_exist_is_misuse():
    result = CliRunner().invoke(app, ["serve", "--prot", "3"])
    assert result.exit_code == 2
    assert "No such option" in result.output
