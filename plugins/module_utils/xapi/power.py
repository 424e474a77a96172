# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Guests that are switched off or suspended for a backup, and given back: what they were is written on them before.

Facts from xen-api: ocaml/xapi/xapi_vm_lifecycle.ml, xapi_xenops.ml, xapi_vm_snapshot.ml.
"""
from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Mapping, Optional

from .client import PoolClient, pauses
from .errors import OutcomeUnknown, PoolError, TaskTimeout, XapiError
from .snapshots import PREFIX
from .tasks import PATIENCE, call_async

HALTED, RUNNING, PAUSED, SUSPENDED = "Halted", "Running", "Paused", "Suspended"
HELD = PREFIX + "held"  # written once, before the guest is touched, and never replaced while it is
ASKED = PREFIX + "asked"
MOMENT = "%Y-%m-%dT%H:%M:%SZ"
GIVE_BACK_SECONDS = 60.0  # how long what stands in the way of giving a guest back is waited for
LATE_SECONDS = 30.0  # a guest that did not shut down in time may do so right after
STILL_ASKED = timedelta(minutes=20)  # how long a guest may still obey a request to shut down: XAPI's own limit
ALIVE = timedelta(days=1)  # how long a run may be at work on a guest
PASSING = frozenset((  # what may be different a moment later
    "OTHER_OPERATION_IN_PROGRESS", "VM_BAD_POWER_STATE", "HOST_NOT_ENOUGH_FREE_MEMORY", "NO_HOSTS_AVAILABLE",
    "HOST_STILL_BOOTING", "TASK_CANCELLED", "VDI_IN_USE",
))


class GuestNotBack(PoolError):
    """A guest that ran before could not be made to run again."""


class HeldByAnother(PoolError):
    """Somebody else has a guest switched off or suspended for a backup."""


class StillRunning(PoolError):
    """A guest did not shut down."""


@dataclass(frozen=True)
class Hold:
    """What is noted on a VM before its power state is changed.

    ``vm``: its UUID, so that a copy of the note on a clone or a snapshot is none. ``power_state``: what it is to be
    again. ``scope``: id of the repository whose lease the run holds, or empty for a hold that somebody asked for.
    ``asked``: when the guest was asked to shut down, or empty. Moments are RFC 3339.
    """

    vm: str
    power_state: str
    method: str
    scope: str
    since: str
    asked: str = ""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Optional[Hold]:
        """The note on a VM's record, or None."""
        try:
            noted = json.loads(record["other_config"].get(HELD, "null"))
            found = cls(**noted, asked=record["other_config"].get(ASKED, ""))
        except (TypeError, ValueError, RecursionError):
            return None
        return found if found.vm == record["uuid"] else None

    @property
    def age(self) -> timedelta:
        """How long ago it was written."""
        return _since(self.since)


def hold(client: PoolClient, vm: Mapping[str, Any], method: str, scope: str) -> Hold:
    """Note on a VM what it is now, before that is changed; ``vm`` is its record with its ``ref``.

    Raises HeldByAnother while another repository's run, or somebody, holds it.
    """
    there = Hold.read(client.call("VM.get_record", vm["ref"]))
    if there and there.scope != scope and there.age < ALIVE:
        raise HeldByAnother(
            "VM %s has been held by another run for a backup (%s) since %s." % (vm["name_label"], there.method, there.since),
            "Wait for that run, or release the VM with xen_quiesce.",
        )
    noted = Hold(vm["uuid"], vm["power_state"], method, scope, datetime.now(timezone.utc).strftime(MOMENT))
    facts = {name: value for name, value in asdict(noted).items() if name != "asked"}
    _write(client, vm["ref"], HELD, json.dumps(facts, sort_keys=True))
    return noted


def stop(client: PoolClient, vm: Mapping[str, Any], timeout: float, hard: bool) -> bool:
    """Shut a running guest down; True when it did so itself, False when it had to be switched off.

    ``timeout``: seconds the guest is given. ``hard``: switch it off after that. Raises StillRunning when it runs on,
    XapiError when it cannot be switched off.
    """
    ref, subject = vm["ref"], "VM %s" % vm["name_label"]
    problem: Optional[PoolError] = None
    deadline = time.monotonic() + timeout
    noted = Hold.read(client.call("VM.get_record", ref))
    if noted:  # written first: who dies in between must not leave a guest that obeys later and stays down
        _write(client, ref, ASKED, datetime.now(timezone.utc).strftime(MOMENT))
    try:
        call_async(client, "VM.clean_shutdown", ref, subject=subject, wait_timeout=timeout)
    except OutcomeUnknown as error:
        problem = error  # the coordinator went away: the guest may have been asked, or not
    except (TaskTimeout, XapiError) as error:
        problem, deadline = error, 0.0
    clean = _becomes_halted(client, ref, deadline)
    if not clean and hard:
        try:
            call_async(client, "VM.hard_shutdown", ref, subject=subject)
        except XapiError as error:
            if error.code != "VM_BAD_POWER_STATE":  # it shut down at last
                raise
    if clean or hard:
        client.call("VM.remove_from_other_config", ref, ASKED, safe=True)
        return clean
    raise StillRunning(
        "%s did not shut down within %g s%s" % (subject, timeout, ": %s" % problem.message if problem else "."),
        "Give it more time (shutdown_timeout), look why it does not shut down, or allow hard_shutdown.",
    )


def give_back(client: PoolClient, ref: str) -> bool:
    """Make a VM again what its note says that it was, and remove the note; whether there was anything to do.

    A guest that was asked to shut down and runs on is watched for a while. The note stays where it may still obey later.
    Raises GuestNotBack; then the note stays too.
    """
    record = client.call("VM.get_record", ref)
    noted = Hold.read(record)
    if noted is None:
        return False
    subject = "VM %s" % record["name_label"]
    may_obey = bool(noted.asked) and _since(noted.asked) < STILL_ASKED
    if may_obey:
        _becomes_halted(client, ref, time.monotonic() + LATE_SECONDS)
    changed = _bring(client, ref, noted, subject)
    if may_obey and not changed:
        return False
    for key in (ASKED, HELD):
        client.call("VM.remove_from_other_config", ref, key, safe=True)
    return True


def _bring(client: PoolClient, ref: str, noted: Hold, subject: str) -> bool:
    deadline = time.monotonic() + GIVE_BACK_SECONDS
    changed = False
    for pause in pauses():
        record = client.call("VM.get_record", ref)
        state = record["power_state"]
        _cancel_shutdown(client, record)
        if state == noted.power_state and not record["current_operations"]:
            return changed
        problem: PoolError = GuestNotBack("it is busy: %s" % ", ".join(record["current_operations"].values()))
        if state != noted.power_state:
            try:
                call_async(client, *_call(ref, state, noted.power_state), subject=subject)
                changed = True
                continue
            except (OutcomeUnknown, TaskTimeout) as error:
                problem = error
            except XapiError as error:
                problem = error
                if error.code not in PASSING:
                    deadline = 0.0
        if time.monotonic() + pause > deadline:
            raise GuestNotBack(
                "%s was %s before and is %s now: it could not be brought back: %s"
                % (subject, noted.power_state, state, problem.message.rstrip(".")),
                "Mend the cause, then start it, or run xen_quiesce with state: released.",
            ) from problem
        time.sleep(pause)
    raise GuestNotBack("%s was not brought back." % subject)


def _call(ref: str, state: str, wanted: str) -> tuple[Any, ...]:
    """The call that leads from a power state towards another."""
    paused = wanted == PAUSED
    calls: dict[str, tuple[Any, ...]] = {
        HALTED: ("VM.start", ref, paused, False),
        SUSPENDED: ("VM.resume", ref, paused, False),
        PAUSED: ("VM.unpause", ref),
        RUNNING: ("VM.pause", ref),
    }
    return calls[state]


def _cancel_shutdown(client: PoolClient, record: Mapping[str, Any]) -> None:
    """A request to shut down that a dead run left is taken back."""
    for task, operation in record["current_operations"].items():
        if operation == "clean_shutdown":
            with suppress(PoolError):
                client.call("task.cancel", task, safe=True, patience=PATIENCE)


def _becomes_halted(client: PoolClient, ref: str, deadline: float) -> bool:
    while client.call("VM.get_power_state", ref) != HALTED:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _write(client: PoolClient, ref: str, key: str, value: str) -> None:
    client.call("VM.remove_from_other_config", ref, key, safe=True)
    client.call("VM.add_to_other_config", ref, key, value)


def _since(moment: str) -> timedelta:
    try:
        return datetime.now(timezone.utc) - datetime.strptime(moment, MOMENT).replace(tzinfo=timezone.utc)
    except (TypeError, ValueError):
        return timedelta.max
