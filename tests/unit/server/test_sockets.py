from __future__ import annotations

import os
import socket

import pytest

from modelworks.core.config import Settings
from modelworks.core.errors import Invalid, Unavailable
from modelworks.server.sockets import check_exposure, is_loopback, listen, url_of


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Settings.model_validate({"host": host}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.9", "box.lan"])
def test_any_other_address_needs_a_key_or_the_word_for_none(host: str) -> None:
    with pytest.raises(Invalid, match="MODELWORKS_API_KEY"):
        check_exposure(Settings.model_validate({"host": host}))
    check_exposure(Settings.model_validate({"host": host, "api_key": "sk-x"}))
    check_exposure(Settings.model_validate({"host": host, "insecure_no_auth": True}))


def test_port_0_takes_a_free_port_the_same_for_both_loopbacks() -> None:
    sockets = listen("127.0.0.1", 0)
    try:
        ports = {taken.getsockname()[1] for taken in sockets}
        assert len(ports) == 1
        assert ports.pop() > 0
    finally:
        for taken in sockets:
            taken.close()


def test_a_taken_port_is_explained_with_who_has_it() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        port = first.getsockname()[1]

        with pytest.raises(Unavailable, match=rf"port {port}: .*process {os.getpid()}.*--port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(("host", "what"), [("192.0.2.1", "no such address"), ("no.such.host.invalid", "--host")])
def test_an_address_of_another_machine_is_explained(host: str, what: str) -> None:
    with pytest.raises(Unavailable, match=what):
        listen(host, 0)


def test_the_url_is_one_that_a_client_on_this_machine_reaches() -> None:
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::", 80) == "http://[::1]:80"
    assert url_of("127.0.0.1", 80) == "http://127.0.0.1:80"
