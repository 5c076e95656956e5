"""Weights by broadcast: what the sender has is what every receiver gets, whatever it held before."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from world_r1 import parallel, weight_sync
from world_r1.actors.publishing import Meeting
from world_r1.weight_sync import Channel

SHAPES = {"b.weight": (7, 3), "a.bias": (5,), "c.scale": (), "d.weight": (2, 3, 11)}


def parameters(seed: int, dtype: torch.dtype = torch.float32, **changed: tuple[int, ...]) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES | changed
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


def channels(folder: Path, *held: dict[str, torch.nn.Parameter]) -> list[Channel]:
    """One end for each, in threads, which wait for each other."""
    with ThreadPoolExecutor(len(held)) as pool:
        made = [
            pool.submit(Channel, rank, len(held), dist.FileStore(str(folder / "store"), len(held)), own, "gloo")
            for rank, own in enumerate(held)
        ]
        return [one.result() for one in made]


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.mark.parametrize("bucket", [1, 20, 2**26])
def test_every_receiver_gets_what_is_sent(bucket: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In buckets smaller than a parameter, of several parameters, and in one; to the last bit, and again after a change."""
    monkeypatch.setattr(parallel, "BUCKET", bucket)
    sent, one, two = parameters(0), parameters(1), parameters(2, torch.bfloat16)
    backwards = dict(reversed(one.items()))
    sender, *receivers = channels(tmp_path, sent, backwards, two)
    with ThreadPoolExecutor(3) as pool:
        for version in (4, 5):
            calls = [pool.submit(sender.send, version), *(pool.submit(receiver.receive) for receiver in receivers)]
            assert [call.result(timeout=60) for call in calls] == [version] * 3
            for name, value in sent.items():
                assert torch.equal(one[name], value)
                assert torch.equal(two[name], value.bfloat16()), "a receiver keeps its own dtype"
                value.data.mul_(3.0)


def test_other_parameters_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the learner trains 4 parameters, sampler 0 has 4, not all of the same names"):
        channels(tmp_path, parameters(0), parameters(0, **{"b.weight": (3, 7)}))


def test_a_sender_that_never_says_what_it_has_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_sync, "MEETING", timedelta(seconds=0.2))
    with pytest.raises(RuntimeError, match=r"(?i)timeout"):
        Channel(1, 2, dist.FileStore(str(tmp_path / "store"), 2), parameters(0), "gloo")


def test_the_ends_keep_to_their_roles(tmp_path: Path) -> None:
    sender, receiver = channels(tmp_path, parameters(0), parameters(1))
    with pytest.raises(ValueError, match="rank 0 sends, this is rank 1"):
        receiver.send(1)
    with pytest.raises(ValueError, match="cannot receive"):
        sender.receive()


def test_where_processes_meet() -> None:
    """By loopback only where nobody elsewhere will be spoken to, also later: NCCL chooses its interface once in a process.

    In a file only where the driver is: it makes the folder.
    """
    meeting = Meeting("10.0.0.1")
    try:
        alone = meeting.place(["10.0.0.1", "10.0.0.1"], lambda: ("", 0), ["10.0.0.1"])
        assert not alone["apart"]
        assert Path(alone["file"]).parent.is_dir()
    finally:
        meeting.close()
    assert not Path(alone["file"]).parent.exists()
    meeting = Meeting("10.0.0.1")
    assert meeting.place(["10.0.0.1"], lambda: ("", 0), ["10.0.0.2"])["apart"]
    meeting.close()

    def listen() -> tuple[str, int]:
        return "10.0.0.1", 7

    assert Meeting("10.0.0.1").place(["10.0.0.1", "10.0.0.2"], listen) == {"host": "10.0.0.1", "port": 7, "apart": True}
    assert Meeting("10.0.0.9").place(["10.0.0.1", "10.0.0.1"], listen) == {"host": "10.0.0.1", "port": 7, "apart": False}


@pytest.mark.parametrize(("apart", "spoken"), [(False, "127.0.0.1"), (True, "192.0.2.7")])
def test_a_process_speaks_by_the_address_of_its_node_to_other_machines(
    apart: bool, spoken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(parallel, "speak_by", said.append)
    parallel.meet({"file": str(tmp_path / "store"), "apart": apart}, 1, "192.0.2.7")
    assert said == [spoken]
    opened = parallel.listen("127.0.0.1", 1)
    assert parallel.meet({"host": "127.0.0.1", "port": opened.port, "apart": apart}, 1, "192.0.2.7", opened) is opened
    assert said[-1] == spoken


def test_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert parallel.interface("127.0.0.1") == "lo"
    assert parallel.interface("192.0.2.1") is None, "an address that no machine has"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    parallel.speak_by("192.0.2.1")
    assert "no network interface has 192.0.2.1" in caplog.text
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    parallel.speak_by("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7", "what the user says stays"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo", "this one, not one whose name begins so"
