"""What several processes do together, as far as one can show it; tests/commands/test_distributed.py has several."""

import socket

import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import hosts


def test_one_process_gathers_its_own_value_without_copying_it():
    value = {"a": [1, 2]}
    assert hosts.gather(value)[0] is value and len(hosts.gather(value)) == 1


def test_one_process_s_error_stays_what_it_is():
    class Special(UserError):
        pass

    with pytest.raises(Special, match="field=1"), hosts.agreed():
        raise Special("field=1: expected 2.")
    with pytest.raises(KeyError), hosts.agreed():
        raise KeyError("not the user's")
    with pytest.raises(KeyError), hosts.side_by_side():
        raise KeyError("alone there is nobody to leave")


@pytest.fixture
def three(monkeypatch):
    """As if this were process 1 of 3; the others' texts can be set."""
    others = [None, None]
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "gather", lambda value: [others[0], value, others[1]])
    return others


def test_an_error_of_any_process_is_raised_on_all(three):
    with hosts.agreed():
        pass
    with pytest.raises(hosts.Refused, match="^process 1: mine$"), hosts.agreed():
        raise UserError("mine")
    three[1] = "theirs"
    with pytest.raises(hosts.Refused, match="^process 2: theirs$"), hosts.agreed():
        pass
    three[0] = "the first's"
    with pytest.raises(hosts.Refused, match="^the first's$"), hosts.agreed():
        raise UserError("mine")


def test_an_exception_of_one_alone_ends_it_at_once(three, monkeypatch, capsys):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(hosts.os, "_exit", end)
    monkeypatch.setattr(hosts, "FAREWELLS", [lambda: print("farewell")])
    with pytest.raises(Ended, match="2"), hosts.side_by_side():
        raise UserError("field=1: expected 2.")
    assert capsys.readouterr() == ("farewell\n", "error: process 1: field=1: expected 2.\n")
    with pytest.raises(Ended, match="1"), hosts.side_by_side():
        raise RuntimeError("a mistake")
    assert "RuntimeError: a mistake" in capsys.readouterr().err
    with pytest.raises(Ended, match="1"), hosts.side_by_side():
        raise ValueError("UNKNOWN: Gloo AllGather failed")
    lost = "error: process 1: another process is lost (UNKNOWN: Gloo AllGather failed)\n"
    assert capsys.readouterr() == ("", lost), "which the watcher speaks of"
    for shared in (hosts.Refused, ZeroDivisionError):
        with pytest.raises(shared), hosts.side_by_side(ZeroDivisionError):
            raise shared("all have it")


def test_only_the_runtime_s_own_words_tell_of_a_lost_process(three, monkeypatch):
    lost = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    assert hosts.lost_another(lost)
    assert not hosts.lost_another(ValueError("Error opening 'runs/peer-heartbeat-gloo/checkpoints/5'"))
    assert not hosts.lost_another(UserError(str(lost))) and not hosts.lost_another(KeyError(str(lost)))
    monkeypatch.setattr(hosts, "several", lambda: False)
    assert not hosts.lost_another(lost), "one process has nobody to lose"


def test_an_error_that_all_know_is_refused_by_all():
    with pytest.raises(hosts.Refused, match="^field=1$"), hosts.common():
        raise UserError("field=1")


def test_process_0_that_does_not_come_is_missed(capsys, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"'127.0.0.1:{port}': expected process 0 there within 0.5 seconds"):
        hosts._wait_for("127.0.0.1", port, 0.5)
    assert capsys.readouterr().err == f"Waiting for process 0 at 127.0.0.1:{port}.\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        hosts._wait_for(*server.getsockname(), 0.5)
