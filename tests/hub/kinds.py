"""The kinds of faults: what each does to a request, or to those who speak."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from threading import Timer
from typing import Any, NamedTuple

from full_disk import full_disk
from gated_hub_process import Ended
from processes import Server
from pytest import MonkeyPatch
from scenes import Scene, Step
from world import World

HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
SILENCE = 0.4
"""Seconds; the hub itself answers sooner, on a busy machine too."""

MOST_TRIES = 10
"""Of one request: each may take `client.SILENCE_SECONDS`."""

How = dict[str, Any]
"""What `FaultyProxy.fail` takes."""


class Case(NamedTuple):
    """One fault in one scene."""

    kind: str
    scene: Scene
    step: Step
    how: How
    random: Random
    """For what is chosen while it happens."""

    def __str__(self) -> str:
        return f"{self.kind} {self.how} at {self.step} of {self.scene.name}"


def on_the_wire(world: World, case: Case) -> Ended:
    fault = world.proxy.fail(**case.step.place, **case.how)
    ended = world.do(case.scene.command)
    tries = case.how["times"] - fault.times
    assert 0 < tries <= MOST_TRIES, f"{tries} tries"
    return ended


def another_writer(world: World, case: Case) -> Ended:
    """Somebody else pushes another SAE right before the request."""

    def push() -> None:
        ended = world.start_other().wait()
        assert ended.code == 0, ended.stderr

    fault = world.proxy.fail(**case.step.place, meanwhile=push)
    ended = world.do(case.scene.command)
    assert not fault.times, "the other did not push"
    return ended


def disk_full(world: World, case: Case) -> Ended:
    room = case.random.randrange(sum(step.received + step.sent for step in case.scene.steps))
    with full_disk(room, world.folder / "pulled", world.folder / "home", world.folder / "run"):
        return world.do(case.scene.command)


def client_killed(world: World, case: Case) -> Ended:
    """At a request, which still arrives or does not; or at any moment."""
    client = world.start(case.scene.command)
    arrives = case.random.random() < 0.5

    def kill() -> None:
        client.process.kill()
        if not arrives:
            raise ConnectionAbortedError

    if case.random.random() < 0.7:
        world.proxy.fail(**case.step.place, meanwhile=kill)
    else:
        client.process.join(case.random.uniform(0, 0.6))
        client.process.kill()
    return client.wait()


def server_killed(world: World, case: Case) -> Ended:
    """At a request, or at any moment; it comes back at once, or when the command has given up."""
    assert isinstance(world.hub, Server)
    end = world.hub.restart if case.random.random() < 0.5 else world.hub.kill
    with MonkeyPatch.context() as patch:
        if case.random.random() < 0.3:
            patch.setenv("HF_ENDPOINT", world.hub.url)
            timer = Timer(case.random.uniform(0, 0.3), end)
            timer.start()
        else:
            timer = Timer(case.random.uniform(0, 0.02), end)
            later = case.random.random() < 0.5
            world.proxy.fail(**case.step.place, meanwhile=timer.start if later else timer.run)
        ended = world.do(case.scene.command)
    if timer.ident:
        timer.join()
    world.hub.restart()
    return ended


def dropped_before(step: Step, random: Random) -> How | None:
    return {}


def dropped_during(step: Step, random: Random) -> How | None:
    """Within the request's body, or within the answer's."""
    size = step.received if step.method == "GET" else step.sent
    return {"drop_after_bytes": random.randrange(size)} if size else None


def dropped_after(step: Step, random: Random) -> How | None:
    return {"after_handling": True}


def too_many_requests(step: Step, random: Random) -> How | None:
    return {"status": 429, "after_handling": random.random() < 0.2}


def too_many_requests_wait(step: Step, random: Random) -> How | None:
    return {"status": 429, "headers": {"Retry-After": str(random.randint(0, 60))}}


def server_error(step: Step, random: Random) -> How | None:
    return {"status": 500, "after_handling": random.random() < 0.5}


def bad_gateway(step: Step, random: Random) -> How | None:
    page = {"headers": {"Content-Type": "text/html"}, "body": HTML}
    return {"status": 502, "after_handling": random.random() < 0.5, **page}


def unavailable(step: Step, random: Random) -> How | None:
    return {"status": 503, "after_handling": random.random() < 0.2}


def stall(step: Step, random: Random) -> How | None:
    """Before or after the hub's work, or within the answer."""
    if step.received and random.random() < 0.5:
        size = random.randrange(step.received)
        return {"stall": True, "after_handling": True, "drop_after_bytes": size}
    return {"stall": True, "after_handling": random.random() < 0.5}


def truncated(step: Step, random: Random) -> How | None:
    """Some bytes fewer than there are, or than were promised."""
    if not step.received:
        return None
    size = random.randrange(step.received)
    if random.random() < 0.5:
        return {"cut_to": size}
    return {"after_handling": True, "drop_after_bytes": size}


def flipped(step: Step, random: Random) -> How | None:
    return {"flip_at": random.randrange(step.received)} if step.received else None


def anyhow(step: Step, random: Random) -> How | None:
    return {}


class Kind(NamedTuple):
    """A kind of fault."""

    attack: Callable[[World, Case], Ended]
    how: Callable[[Step, Random], How | None]
    """None where it cannot happen."""
    passes: bool = True
    """Whether a command succeeds where it happens once."""
    everywhere: bool = False
    """At every request, once and for ever; else at some."""
    silence: float = 20.0
    """Seconds until a request without an answer is given up."""
    apart: bool = False
    """Whether the hub is a process of its own."""
    shared: bool = False
    """Whether somebody else pushes meanwhile."""


KINDS = {
    "dropped before": Kind(on_the_wire, dropped_before, everywhere=True),
    "dropped during": Kind(on_the_wire, dropped_during, everywhere=True),
    "dropped after": Kind(on_the_wire, dropped_after, everywhere=True),
    "429": Kind(on_the_wire, too_many_requests),
    "429 with Retry-After": Kind(on_the_wire, too_many_requests_wait),
    "500": Kind(on_the_wire, server_error),
    "502 in HTML": Kind(on_the_wire, bad_gateway),
    "503": Kind(on_the_wire, unavailable),
    "stall": Kind(on_the_wire, stall, silence=SILENCE),
    "truncated": Kind(on_the_wire, truncated, everywhere=True),
    "flipped byte": Kind(on_the_wire, flipped, passes=False, everywhere=True),
    "another writer": Kind(another_writer, anyhow, passes=False, shared=True),
    "full disk": Kind(disk_full, anyhow, passes=False),
    "client killed": Kind(client_killed, anyhow, passes=False),
    "server killed": Kind(server_killed, anyhow, passes=False, apart=True),
}
