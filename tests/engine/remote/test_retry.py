from __future__ import annotations

import random
from email.utils import formatdate

import pytest

from nimbed.errors import ConfigurationError
from nimbed.remote.retry import Failure, RetryPolicy, requested_wait

NOW = 1_700_000_000.0


def status(number, **facts):
    return Failure(kind="status", message="m", status=number, **facts)


def pause(failure, *, tried=1, elapsed=0.0, policy=None):
    policy = policy or RetryPolicy()
    return policy.pause(failure, tried=tried, elapsed=elapsed, jitter=random.Random(1))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_the_wait_is_read_from_either_header_in_every_form(headers, expected):
    assert requested_wait(headers, now=NOW) == expected


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504, 529])
def test_faults_that_pass_are_retried(code):
    assert pause(status(code)) is not None


@pytest.mark.parametrize("code", [300, 400, 401, 402, 403, 404, 413, 422])
def test_faults_that_stay_are_not(code):
    assert pause(status(code)) is None


@pytest.mark.parametrize("kind", ["network", "timeout", "malformed"])
def test_a_missing_or_senseless_answer_is_retried(kind):
    assert pause(Failure(kind=kind, message="m")) is not None


def test_the_servers_own_verdict_wins():
    assert pause(status(500, should_retry=False)) is None
    assert pause(status(400, should_retry=True)) is not None


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_a_spent_quota_is_not_retried(code):
    assert pause(status(429, code=code)) is None


def test_pauses_double_up_to_a_limit_and_are_jittered_downwards():
    for tried, most in [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0)]:
        waited = pause(Failure(kind="network", message="closed"), tried=tried)
        assert 0.75 * most <= waited <= most


def test_the_servers_wait_is_kept_and_one_beyond_patience_is_not_waited_for():
    assert 3.0 <= pause(status(429, retry_after=3.0)) <= 3.15
    assert pause(status(429, retry_after=120.0)) is not None
    assert pause(status(429, retry_after=120.5)) is None


def test_tries_and_time_are_limited():
    policy = RetryPolicy(retries=2, deadline=10)
    assert pause(status(500), tried=2, policy=policy) is not None
    assert pause(status(500), tried=3, policy=policy) is None
    assert pause(status(429, retry_after=6), elapsed=5, policy=policy) is None


@pytest.mark.parametrize("facts", [{"retries": -1}, {"deadline": float("nan")}, {"shortest": -1}])
def test_a_policy_that_cannot_be_followed_is_refused(facts):
    with pytest.raises(ConfigurationError):
        RetryPolicy(**facts)
