# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi.error_table import MEANINGS
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import PoolError, XapiError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.snapshots import BUSY


def test_an_error_says_what_happened_to_which_vm_what_to_do_and_the_raw_code():
    error = XapiError("VM_BAD_POWER_STATE", ["OpaqueRef:1", "halted, suspended", "running"], "VM.export", "VM web01")
    assert error.message == (
        "VM.export of VM web01 failed: the VM is running, but must be halted, suspended"
        " [VM_BAD_POWER_STATE: OpaqueRef:1, halted, suspended, running]."
    )
    assert error.remedy == "Bring the VM into that state first; a VM to be replaced must be halted."
    assert str(error) == error.message + " " + error.remedy
    assert error.wire == ["VM_BAD_POWER_STATE", "OpaqueRef:1", "halted, suspended", "running"]


def test_what_is_not_said_is_left_out():
    assert XapiError("SR_FULL", [], "pool.sync").message == "pool.sync failed: the storage repository is full [SR_FULL]."
    assert XapiError("SR_FULL").message == "The storage repository is full [SR_FULL]."


def test_missing_parameters_are_no_failure_of_their_own():
    assert "…" in str(XapiError("OPERATION_BLOCKED"))


def test_braces_in_a_parameter_are_text():
    assert "{0} {p0} %s" in str(XapiError("OPERATION_NOT_ALLOWED", ["{0} {p0} %s"]))


@pytest.mark.parametrize(
    "code, params, words",
    [
        ("SR_BACKEND_FAILURE_44", ["", "There is insufficient space", ""], "out of space"),
        ("SR_BACKEND_FAILURE_82", ["", "Failed to snapshot VDI [opterr=no space left]", ""], "out of space"),
        ("SR_BACKEND_FAILURE_82", ["", "Failed to snapshot VDI", ""], "storage driver failed: Failed to snapshot"),
        ("SR_BACKEND_FAILURE_9999", ["", "odd", ""], "storage driver failed: odd"),
        ("XEN_VSS_REQ_ERROR_INIT_FAILED", ["OpaqueRef:1", "x"], "quiesced"),
        ("A_CODE_NOBODY_KNOWS", [], "answered with an error"),
    ],
)
def test_families_of_codes(code, params, words):
    error = XapiError(code, params)
    assert words in error.message
    assert code in error.message


@pytest.mark.trap(32)
@pytest.mark.parametrize("params", [
    ["VM.export", "OpaqueRef:1"], ["VM", "OpaqueRef:1", "export", "OpaqueRef:2"],
    ["VM", "OpaqueRef:1", "{export,snapshot}", "{OpaqueRef:2,OpaqueRef:3}"],
])
def test_an_error_that_comes_in_several_shapes(params):
    error = XapiError("OTHER_OPERATION_IN_PROGRESS", params, "VM.snapshot", "VM web01")
    raw = "[OTHER_OPERATION_IN_PROGRESS: %s]" % ", ".join(params)
    assert error.message == "VM.snapshot of VM web01 failed: another operation holds the object %s." % raw
    assert error.code in BUSY  # by the code alone it is known to pass


@pytest.mark.trap(31)
def test_codes_are_spelt_as_they_are_sent():
    assert "LICENCE_RESTRICTION" in MEANINGS and "LICENSE_RESTRICTION" not in MEANINGS
    assert "VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND" in MEANINGS


def documented():
    """The codes in the issue's ground: each must have its own meaning, not the one for unknown codes."""
    return """
    HOST_IS_SLAVE SESSION_AUTHENTICATION_FAILED SESSION_INVALID RBAC_PERMISSION_DENIED HOST_STILL_BOOTING HOST_OFFLINE
    CANNOT_CONTACT_HOST NO_HOSTS_AVAILABLE TOO_MANY_PENDING_TASKS OTHER_OPERATION_IN_PROGRESS OPERATION_BLOCKED
    LICENCE_RESTRICTION MESSAGE_REMOVED MESSAGE_METHOD_UNKNOWN HANDLE_INVALID UUID_INVALID INTERNAL_ERROR
    TASK_CANCELLED CLIENT_ERROR VM_BAD_POWER_STATE VM_IS_TEMPLATE VM_IS_SNAPSHOT VM_HAS_VUSBS VM_REQUIRES_NETWORK
    VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN VDI_IN_USE VDI_IO_ERROR
    VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION SR_FULL SR_HAS_NO_PBDS SR_OPERATION_NOT_SUPPORTED
    SR_BACKEND_FAILURE_24 SR_BACKEND_FAILURE_40 SR_BACKEND_FAILURE_109 SR_BACKEND_FAILURE_460 DEFAULT_SR_NOT_FOUND
    IMPORT_ERROR IMPORT_ERROR_PREMATURE_EOF IMPORT_ERROR_UNEXPECTED_FILE IMPORT_INCOMPATIBLE_VERSION
    VM_TO_IMPORT_IS_NOT_NEWER_VERSION DUPLICATE_MAC_SEED
    """.split()


@pytest.mark.parametrize("code", documented())
def test_codes_a_backup_meets_are_translated(code):
    assert code in MEANINGS


@pytest.mark.parametrize("code", sorted(MEANINGS))
def test_every_entry_reads_as_part_of_a_sentence(code):
    happened, remedy = MEANINGS[code]
    assert happened and not happened.endswith(".")
    assert not remedy or remedy.endswith((".", "…")), remedy
    assert re.match("[a-z{]|BIOS", happened) or happened.split()[0].isupper(), happened
    assert "{p" not in str(XapiError(code, ["a", "b", "c", "d"]))


def test_one_base_for_all():
    assert issubclass(XapiError, PoolError)
