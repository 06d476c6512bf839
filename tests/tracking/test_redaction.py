"""What is written down holds no passwords, tokens and keys, and is otherwise as it was."""

import pytest

from unseen.tracking.redaction import redacted


@pytest.mark.parametrize(
    ("content", "hidden"),
    [
        ({"api_key": "abc"}, {"api_key": "***"}),
        (
            {"logger": [{"hub_token": "abc", "name": "run"}]},
            {"logger": [{"hub_token": "***", "name": "run"}]},
        ),
        ({"PASSWORD": "abc"}, {"PASSWORD": "***"}),
        ({"password": "${oc.env:PW}"}, {"password": "${oc.env:PW}"}),
        (
            {"class_token": True, "password": None, "token": ""},
            {"class_token": True, "password": None, "token": ""},
        ),
        (
            {"tokens": "12", "tokenizer": "words", "key": "k"},
            {"tokens": "12", "tokenizer": "words", "key": "k"},
        ),
        (["+logger.x.api_key=a=b,c"], ["+logger.x.api_key=***"]),
        (["loss=triplet", "seed=1"], ["loss=triplet", "seed=1"]),
        ("logger.token=abc,seed=1", "logger.token=***"),
        ("seed=1,logger.token=abc,loss=triplet", "seed=1,logger.token=***,loss=triplet"),
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("https://host/x?token=abc&k=3", "https://host/x?token=***&k=3"),
    ],
)
def test_keys_overrides_and_addresses(content, hidden):
    assert redacted(content, {}) == hidden


@pytest.mark.parametrize(
    "content",
    [
        {"class_token": True, "password": None, "token": ""},
        {"tokens": "12", "tokenizer": "words", "key": "k"},
        "mail me@host",
        3.5,
    ],
)
def test_what_is_no_secret_stays(content):
    assert redacted(content, {}) == content


def test_values_of_the_environment_are_hidden_wherever_they_stand():
    environment = {
        "WANDB_API_KEY": "0123456789",
        "LONGER_TOKEN": "0123456789abc",
        "HF_TOKEN": "short",
        "HOME": "/home/me/x",
    }
    content = {"root": "/data/0123456789/x", "name": "0123456789abc", "other": "short", "home": "/home/me/x"}
    assert redacted(content, environment) == content | {"root": "/data/***/x", "name": "***"}
