# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What XAPI's error codes mean and what to do about them.

Codes and parameters are those on the wire (ocaml/idl/datamodel_errors.ml and ocaml/xapi-consts/api_errors.ml of
xen-api); ``{p0}``, ``{p1}`` … stand for the parameters.
"""
from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """``happened`` continues a sentence in lower case without a full stop; ``remedy`` is a sentence or empty."""

    happened: str
    remedy: str = ""


RESCAN = "It was removed or changed meanwhile: look at the pool again and repeat."
BUG = "Please report this as an error of this collection, with the versions of the pool and of the collection."
SPACE = "Free space or enlarge the storage repository; a snapshot on thick storage needs the full size of the disk."
SR_UNREACHABLE = "Check the storage server and the network between it and the hosts, then repair the storage."
PLUG_SR = "Repair or plug the storage repository on the hosts."
DAMAGED_ARCHIVE = "Verify the backup; when it is damaged, use another one."

_CONNECTION = {
    "HOST_IS_SLAVE": Meaning(
        "this host is not the pool's coordinator, {p0} is",
        "Connect to {p0}; when it cannot be reached from here, mend the routing, NAT or name resolution.",
    ),
    "SESSION_AUTHENTICATION_FAILED": Meaning(
        "the pool does not accept this user name and password",
        "Check both; the account may be locked, or the directory service unreachable.",
    ),
    "SESSION_AUTHORIZATION_FAILED": Meaning(
        "the account is valid but not admitted to this pool", "Add the user or its group to the pool's access list."
    ),
    "SESSION_INVALID": Meaning(
        "the session ended (expired, logged out, or the toolstack restarted)",
        "If it repeats, other jobs of the same user exhaust the pool's limit of sessions.",
    ),
    "USER_IS_NOT_LOCAL_SUPERUSER": Meaning("the call is reserved for root", "Use the host's local root account."),
    "RBAC_PERMISSION_DENIED": Meaning(
        "the role of this account does not suffice ({p0})",
        "Give the account the role vm-admin; vm-power-admin to take snapshots, pool-operator for work on the pool.",
    ),
    "PERMISSION_DENIED": Meaning("the pool refused: {p0}", "Give the account a stronger role."),
    "CHANGE_PASSWORD_REJECTED": Meaning("the new password was refused: {p0}"),
    "HOST_STILL_BOOTING": Meaning(
        "the host's toolstack is starting, or has lost its coordinator", "Wait some minutes; check the coordinator."
    ),
    "HOST_IN_EMERGENCY_MODE": Meaning("the host has no coordinator", "Repair the pool."),
    "HOST_HAS_NO_MANAGEMENT_IP": Meaning(
        "the host's management interface has no address", "Mend the network of that host."
    ),
    "HOST_ITS_OWN_SLAVE": Meaning(
        "the host's pool configuration points at itself", "Reset its coordinator with an emergency call on that host."
    ),
    "HOST_MASTER_CANNOT_TALK_BACK": Meaning(
        "the coordinator cannot reach the host {p0}", "Mend routing or firewall between the hosts."
    ),
    "HOST_UNKNOWN_TO_MASTER": Meaning("the host was ejected from the pool", "Let it join again, or forget it."),
    "HOST_XAPI_VERSION_HIGHER_THAN_COORDINATOR": Meaning(
        "the host is newer than the coordinator ({p0})", "Update the coordinator first."
    ),
    "HOST_BROKEN": Meaning("a failover stopped half-way on the host", "Look at the host's logs."),
    "HOST_OFFLINE": Meaning("a host that is needed cannot be reached", "Power it on, or wait for high availability."),
    "HOST_NOT_LIVE": Meaning("a host that is needed sends no heartbeat", "Power it on, or wait for high availability."),
    "CANNOT_CONTACT_HOST": Meaning(
        "the call could not be forwarded to the host that has to do it", "Power it on, or check the network."
    ),
    "TLS_CONNECTION_FAILED": Meaning(
        "hosts of the pool could not talk TLS ({p0})", "Check the hosts' certificates and clocks."
    ),
    "SSL_VERIFY_ERROR": Meaning("a host's certificate failed a check: {p0}", "Renew the hosts' certificates."),
    "HOST_DISABLED": Meaning(
        "the host is in maintenance mode", "End the maintenance mode, or choose another host."
    ),
    "HOST_DISABLED_UNTIL_REBOOT": Meaning("the host is disabled until it is rebooted", "Reboot it."),
    "NO_HOSTS_AVAILABLE": Meaning(
        "no host fits",
        "Check that one live, enabled host sees every disk (inserted CDs too) and network, and has the memory.",
    ),
    "TOO_MANY_PENDING_TASKS": Meaning("too many calls wait for locks", "Run fewer jobs at once."),
    "TOO_BUSY": Meaning("the pool is too busy", "Run fewer jobs at once, or later."),
    "OTHER_OPERATION_IN_PROGRESS": Meaning(
        "another operation holds the object", "Wait for that job, and keep schedules from overlapping."
    ),
    "OPERATION_BLOCKED": Meaning(
        "the operation is blocked, with the reason: {p1}", "Remove the entry from blocked_operations if it may go."
    ),
    "OPERATION_NOT_ALLOWED": Meaning("not allowed now: {p0}"),
    "NOT_SUPPORTED_DURING_UPGRADE": Meaning("the pool is being upgraded", "Finish the upgrade of all hosts first."),
    "LICENCE_RESTRICTION": Meaning(
        "the licence lacks the feature {p0}", "Use an edition that has it, or a method that does not need it."
    ),
    "FEATURE_RESTRICTED": Meaning(
        "the pool has this feature switched off", "Use an edition that has it, or a method that does not need it."
    ),
    "MESSAGE_METHOD_UNKNOWN": Meaning("this pool does not know the call {p0}", "Update the pool."),
    "MESSAGE_REMOVED": Meaning(
        "the call was withdrawn from this release",
        "For quiesced snapshots: they left XenServer with 8.1; freeze the guest from inside instead.",
    ),
    "MESSAGE_DEPRECATED": Meaning("the call does nothing any more on this release"),
    "MESSAGE_PARAMETER_COUNT_MISMATCH": Meaning("{p0} takes {p1} parameters on this release, not {p2}", BUG),
    "INVALID_VALUE": Meaning(
        "the value of {p0} is not valid: {p1}", "If it comes from a name, remove unusual characters from it."
    ),
    "FIELD_TYPE_ERROR": Meaning("the value of {p0} could not be read", BUG),
    "VALUE_NOT_SUPPORTED": Meaning("{p0} cannot be {p1} here: {p2}"),
    "HANDLE_INVALID": Meaning("an object ({p0}) has vanished", RESCAN),
    "UUID_INVALID": Meaning("there is no {p0} with the UUID {p1}", "It was deleted, or is in another pool."),
    "OBJECT_NOLONGER_EXISTS": Meaning("the object has vanished", RESCAN),
    "MAP_DUPLICATE_KEY": Meaning("{p0}.{p1} already has the key {p3}", BUG),
    "DB_UNIQUENESS_CONSTRAINT_VIOLATION": Meaning(
        "an object with the same {p1} already exists ({p0})", "Remove the leftover object."
    ),
    "INTERNAL_ERROR": Meaning(
        "the toolstack failed unexpectedly: {p0}", "Look at /var/log/xensource.log of the host."
    ),
    "NOT_IMPLEMENTED": Meaning("the pool does not implement {p0}"),
    "TASK_CANCELLED": Meaning("somebody cancelled the task", "Run it again."),
    "CLIENT_ERROR": Meaning(
        "the stream was closed on the client's side", "Check the network between this machine and the host."
    ),
}

_VM = {
    "VM_BAD_POWER_STATE": Meaning(
        "the VM is {p2}, but must be {p1}", "Bring the VM into that state first; a VM to be replaced must be halted."
    ),
    "VM_IS_TEMPLATE": Meaning("this cannot be done to a template", "Make it a VM, or leave it out."),
    "VM_IS_SNAPSHOT": Meaning("this cannot be done to a snapshot", "Choose the VM itself."),
    "PROVISION_ONLY_ALLOWED_ON_TEMPLATE": Meaning("only templates can be provisioned", BUG),
    "REVERT_ONLY_ALLOWED_ON_SNAPSHOT": Meaning("only a snapshot can be reverted to", "Name a snapshot of the VM."),
    "VM_IS_PROTECTED": Meaning("high availability protects the VM", "Shut it down through the pool first."),
    "VM_LACKS_FEATURE": Meaning("the guest cannot do this", "Install current guest tools."),
    "VM_MISSING_PV_DRIVERS": Meaning("the guest has no drivers for this", "Install current guest tools."),
    "VM_OLD_PV_DRIVERS": Meaning("the guest's drivers are too old", "Install current guest tools."),
    "VM_NON_SUSPENDABLE": Meaning("the guest refuses to be suspended: {p1}", "Take a snapshot of the disks alone."),
    "VM_IS_IMMOBILE": Meaning("the VM cannot be suspended or moved", "Take a snapshot of the disks alone."),
    "VM_NO_SUSPEND_SR": Meaning("there is no place for the VM's memory", "Set a suspend SR for the pool or host."),
    "SR_SUSPEND_SPACE_INSUFFICIENT": Meaning(
        "there is not enough room for the VM's memory", "Free space, or take a snapshot of the disks alone."
    ),
    "VM_CHECKPOINT_SUSPEND_FAILED": Meaning(
        "the VM could not be suspended for the checkpoint; it may be suspended now", "Resume it, and look at the guest."
    ),
    "VM_CHECKPOINT_RESUME_FAILED": Meaning(
        "the VM could not be resumed after the checkpoint", "Resume it, and look at the guest."
    ),
    "SUSPEND_IMAGE_NOT_ACCESSIBLE": Meaning(
        "no host reaches the image of the VM's memory", "Plug its storage repository, or choose another host."
    ),
    "VM_HAS_NO_SUSPEND_VDI": Meaning("the VM's memory is lost", "Force it off and start it afresh."),
    "VM_REVERT_FAILED": Meaning(
        "the VM could not be set back to the snapshot", "It may be without disks now: restore it from a backup."
    ),
    "VM_CRASHED": Meaning("the VM crashed meanwhile", "Look at the guest."),
    "VM_REBOOTED": Meaning("the VM was rebooted meanwhile", "Look at the guest."),
    "VM_HALTED": Meaning("the VM was shut down meanwhile", "Look at the guest."),
    "VM_REQUIRES_SR": Meaning(
        "a host does not see the storage of one of the VM's disks", "Plug it there, or start the VM elsewhere."
    ),
    "VM_REQUIRES_NETWORK": Meaning(
        "a host lacks one of the VM's networks", "Create it there, or put the interface on another network."
    ),
    "VM_REQUIRES_VDI": Meaning("one of the VM's disks cannot be attached", "Check the disk and its storage."),
    "VM_INCOMPATIBLE_WITH_THIS_HOST": Meaning(
        "the host's processor does not suit the saved memory ({p2})", "Restore the VM without its memory."
    ),
    "VM_HOST_INCOMPATIBLE_VERSION": Meaning("the VM needs a newer host", "Use a newer pool."),
    "VM_HOST_INCOMPATIBLE_VIRTUAL_HARDWARE_PLATFORM_VERSION": Meaning("the VM needs a newer host", "Use a newer pool."),
    "HOST_NOT_ENOUGH_FREE_MEMORY": Meaning(
        "the hosts have too little free memory (needed {p0}, free {p1} bytes)", "Free memory, or give the VM less."
    ),
    "HOST_NOT_ENOUGH_PCPUS": Meaning("the host has too few processors", "Give the VM fewer."),
    "VM_TOO_MANY_VCPUS": Meaning("the VM has too many processors", "Give it fewer."),
    "VM_NO_VCPUS": Meaning("the VM has no processor", "Give it one."),
    "VM_DUPLICATE_VBD_DEVICE": Meaning("two disks claim the same position", "Renumber them."),
    "ILLEGAL_VBD_DEVICE": Meaning("the disk's position is not valid", "Renumber it."),
    "DEVICE_ALREADY_EXISTS": Meaning("the position {p0} is taken", "Choose a free one."),
    "DEVICE_ALREADY_ATTACHED": Meaning("the device is attached already"),
    "DEVICE_ALREADY_DETACHED": Meaning("the device is detached already"),
    "DEVICE_ATTACH_TIMEOUT": Meaning("attaching the {p0} hung", "Check the guest and the host, then repeat."),
    "DEVICE_DETACH_TIMEOUT": Meaning("detaching the {p0} hung", "Check the guest and the host, then repeat."),
    "DEVICE_DETACH_REJECTED": Meaning("the guest does not let go of the {p0}", "Unmount it in the guest, then repeat."),
    "VM_CANNOT_DELETE_DEFAULT_TEMPLATE": Meaning("this template is built in", "Leave it out."),
    "VM_IS_PART_OF_AN_APPLIANCE": Meaning("the VM belongs to a vApp", "Take it out of the vApp first."),
    "VM_ASSIGNED_TO_PROTECTION_POLICY": Meaning("the VM has a protection policy", "Remove it from the policy first."),
    "VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE": Meaning("the VM has a snapshot schedule", "Remove it from the schedule first."),
    "DOMAIN_EXISTS": Meaning("the VM still runs somewhere", "Find its domain; do not reset its state."),
    "VM_UNSAFE_BOOT": Meaning("the VM might be started twice", "Find out where it runs."),
    "VM_BIOS_STRINGS_ALREADY_SET": Meaning("the BIOS strings can be set only once"),
    "VTPM_MAX_AMOUNT_REACHED": Meaning("the VM has a virtual TPM already"),
    "HA_IS_ENABLED": Meaning("high availability is on", "Switch it off first."),
    "HA_NOT_ENABLED": Meaning("high availability is off", "Switch it on first."),
    "HA_ENABLE_IN_PROGRESS": Meaning("high availability is being switched on", "Wait."),
    "HA_DISABLE_IN_PROGRESS": Meaning("high availability is being switched off", "Wait."),
    "HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN": Meaning(
        "the capacity is reserved for failover", "Tolerate fewer failures, or stop other VMs."
    ),
    "HA_NO_PLAN": Meaning("high availability has no plan for a failover", "Check the pool's capacity."),
    "VM_CALL_PLUGIN_RATE_LIMIT": Meaning("the guest was called too often", "Wait {p2} seconds."),
    "XENAPI_PLUGIN_FAILURE": Meaning("a plugin of the host failed: {p0} {p2}", "Update the host."),
    "XENAPI_MISSING_PLUGIN": Meaning("the host lacks the plugin {p0}", "Update the host."),
}

_HARDWARE = Meaning(
    "a device passed through to the VM forbids this (virtual USB even forbids snapshots)",
    "Detach the device, or shut the VM down and back it up offline.",
)
_MISSING_HARDWARE = Meaning("no host has the device the VM asks for", "Remove the device from the VM.")
_NO_SHUTDOWN = Meaning("the guest did not shut down", "Install guest tools, or allow a forced shutdown.")
_NO_SUSPEND = Meaning("the guest did not suspend", "Install guest tools, or take a snapshot of the disks alone.")
_QUIESCE = Meaning("the guest could not be quiesced", "Mend VSS in the guest, or take a plain snapshot.")
_MEMORY = Meaning("the VM's memory settings contradict each other ({p0})", "Mend its static and dynamic ranges.")
_NOT_AGILE = Meaning("the VM uses something that is not shared in the pool", "Move it to shared storage and networks.")
_HA_STORAGE = Meaning("high availability lost its heartbeat storage", "Check the heartbeat storage repository.")
_DRIVE = Meaning("the state of the virtual drive does not allow it")

_VM_GROUPS = {
    "VM_HAS_PCI_ATTACHED VM_HAS_VGPU VM_HAS_VUSBS VM_HAS_SRIOV_VIF": _HARDWARE,
    "VM_REQUIRES_GPU VM_REQUIRES_VGPU VM_REQUIRES_IOMMU VM_REQUIRES_VUSB": _MISSING_HARDWARE,
    "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT VM_SHUTDOWN_TIMEOUT": _NO_SHUTDOWN,
    "VM_FAILED_SUSPEND_ACKNOWLEDGMENT VM_SUSPEND_TIMEOUT": _NO_SUSPEND,
    # DEOS is how servers spell it
    "VM_SNAPSHOT_WITH_QUIESCE_FAILED VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED"
    " VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND XEN_VSS_REQ_ERROR": _QUIESCE,
    "MEMORY_CONSTRAINT_VIOLATION MEMORY_CONSTRAINT_VIOLATION_ORDER MEMORY_CONSTRAINT_VIOLATION_MAXPIN": _MEMORY,
    "HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED": _NOT_AGILE,
    "HA_LOST_STATEFILE HA_HOST_CANNOT_ACCESS_STATEFILE": _HA_STORAGE,
    "VBD_NOT_UNPLUGGABLE VBD_NOT_EMPTY VBD_IS_EMPTY VBD_CDS_MUST_BE_READONLY"
    " DISK_VBD_MUST_BE_READWRITE_FOR_HVM": _DRIVE,
}

_STORAGE = {
    "VDI_IN_USE": Meaning(
        "the disk is attached or busy", "Detach it from other VMs; after an export wait until the host has let it go."
    ),
    "VDI_NOT_AVAILABLE": Meaning("the disk cannot be attached", "Check its storage repository."),
    "VDI_NOT_MANAGED": Meaning("the disk is a hidden base image", "Choose another disk."),
    "VDI_READONLY": Meaning("the disk cannot be written", "Choose another disk."),
    "VDI_TOO_SMALL": Meaning("the disk is too small", "Create a bigger one."),
    "VDI_TOO_LARGE": Meaning("the disk is too large for its format", "VHD ends at 2040 GiB: use another format."),
    "VDI_MISSING": Meaning("the storage has lost the disk", "Rescan the storage repository; restore the disk."),
    "VDI_LOCATION_MISSING": Meaning("the disk {p1} is not on its storage", "Attach the storage that holds it."),
    "VDI_CONTENT_ID_MISSING": Meaning("a disk is on no known storage", "Attach the storage that holds it."),
    "VDI_IO_ERROR": Meaning(
        "reading or writing a disk failed: {p0}", "Check the storage's health and free space, and the disk's size."
    ),
    "VDI_COPY_FAILED": Meaning("the disk could not be copied", "Check the storage's health and free space."),
    "VDI_INCOMPATIBLE_TYPE": Meaning("a disk of type {p1} cannot be used for this", "Take a full backup."),
    "VDI_CBT_ENABLED": Meaning("not possible while changes of the disk are tracked", "Switch CBT off for the disk."),
    "VDI_NO_CBT_METADATA": Meaning("the disk has no record of its changes", "Take a full backup."),
    "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION": Meaning(
        "a disk is reset at every boot (on_boot=reset)", "Leave that disk out, or set on_boot to persist."
    ),
    "VDI_IS_SHARABLE": Meaning(
        "a disk shared between VMs cannot be snapshotted", "Leave it out, or back it up inside the guest."
    ),
    "VDI_IS_ENCRYPTED": Meaning("the disk is encrypted on its storage"),
    "LOCATION_NOT_UNIQUE": Meaning("the storage already has a disk at {p1}", RESCAN),
    "SR_FULL": Meaning("the storage repository is full", SPACE + " Delete old snapshots and wait for the coalesce."),
    "SR_SOURCE_SPACE_INSUFFICIENT": Meaning("there is no room for a temporary snapshot", SPACE),
    "SR_OPERATION_NOT_SUPPORTED": Meaning(
        "this kind of storage cannot do it", "Use other storage, or back up the halted VM."
    ),
    "SR_VDI_LOCKING_FAILED": Meaning("the storage could not be locked", "Check whether a second pool uses the LUN."),
    "UNIMPLEMENTED_IN_SM_BACKEND": Meaning("the storage driver cannot do it", "Use other storage or another method."),
    "DEFAULT_SR_NOT_FOUND": Meaning("the pool has no default storage repository", "Name the storage repository."),
    "NETWORK_INCOMPATIBLE_PURPOSES": Meaning(
        "the network has the purpose {p1}, which excludes {p0}", "Remove the other purpose first."
    ),
    "SR_BACKEND_FAILURE": Meaning("the storage driver failed: {p1}", "Look at /var/log/SMlog of the host."),
    "SR_BACKEND_FAILURE_109": Meaning(
        "the chain of snapshots of a disk is too long",
        "Take no more snapshots, wait until the coalesce has caught up (see /var/log/SMlog), or copy the disk in full.",
    ),
    "SR_BACKEND_FAILURE_66": Meaning("the volume is not a VHD", "Take a full backup: there is no change tracking."),
    "SR_BACKEND_FAILURE_461": Meaning("the storage's file system is read-only", "Check the storage server."),
}

_STORAGE_GROUPS = {
    "VDI_IS_A_PHYSICAL_DEVICE VDI_IS_NOT_ISO VDI_HAS_RRDS": Meaning("the disk is a special one", "Leave it out."),
    "SR_HAS_NO_PBDS SR_NOT_ATTACHED SR_ATTACH_FAILED": Meaning(
        "the storage repository is not plugged on the host that has to work", PLUG_SR
    ),
    "SR_UNKNOWN_DRIVER SM_PLUGIN_COMMUNICATION_FAILURE": Meaning(
        "the storage driver is missing or hangs", "Check the storage manager on the host."
    ),
    "SR_REQUIRES_UPGRADE SR_UNHEALTHY CLUSTERED_SR_DEGRADED": Meaning(
        "the storage repository is not healthy", "Repair it first."
    ),
    "SR_DEVICE_IN_USE SR_NOT_EMPTY SR_HAS_PBD SR_INDESTRUCTIBLE": Meaning("the storage repository is in use"),
    "SR_BACKEND_FAILURE_44 SR_BACKEND_FAILURE_180": Meaning("the storage is out of space: {p1}", SPACE),
    "SR_BACKEND_FAILURE_24 SR_BACKEND_FAILURE_46": Meaning(
        "the disk is in use or locked: {p1}", "Repeat; after a host crashed its locks may have to be cleared."
    ),
    "SR_BACKEND_FAILURE_40 SR_BACKEND_FAILURE_47 SR_BACKEND_FAILURE_73 SR_BACKEND_FAILURE_111"
    " SR_BACKEND_FAILURE_68 SR_BACKEND_FAILURE_141": Meaning("the storage cannot be reached: {p1}", SR_UNREACHABLE),
    "SR_BACKEND_FAILURE_52 SR_BACKEND_FAILURE_53": Meaning("a volume is busy: {p1}", "Rescan the storage and repeat."),
    "SR_BACKEND_FAILURE_65 SR_BACKEND_FAILURE_144 SR_BACKEND_FAILURE_181 SR_BACKEND_FAILURE_200": Meaning(
        "a volume is damaged or missing: {p1}", "Check the disks of the storage; restore what is lost."
    ),
    "SR_BACKEND_FAILURE_457 SR_BACKEND_FAILURE_458 SR_BACKEND_FAILURE_459 SR_BACKEND_FAILURE_460": Meaning(
        "the record of changes is unusable: {p1}", "Take a full backup; switch change tracking on again."
    ),
}

_TRANSFER = {
    "IMPORT_ERROR": Meaning("the import failed: {p0}", DAMAGED_ARCHIVE),
    "IMPORT_ERROR_PREMATURE_EOF": Meaning(
        "the archive ended early", "The backup is cut short, or the network broke: verify the backup and repeat."
    ),
    "IMPORT_ERROR_SOME_CHECKSUMS_FAILED": Meaning("checksums of the archive do not fit its data", DAMAGED_ARCHIVE),
    "IMPORT_ERROR_CANNOT_HANDLE_CHUNKED": Meaning("the pool takes no chunked upload", BUG),
    "IMPORT_ERROR_FAILED_TO_FIND_OBJECT": Meaning("the archive refers to {p0}, which is not in it", DAMAGED_ARCHIVE),
    "IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND": Meaning(
        "the archive of a suspended VM lacks a disk", "Import it without its memory."
    ),
    "IMPORT_ERROR_UNEXPECTED_FILE": Meaning("the archive has {p1} where {p0} belongs", "Check that this is an XVA."),
    "IMPORT_INCOMPATIBLE_VERSION": Meaning(
        "the archive comes from a release this pool does not import",
        "Restore to a pool at least as new as the one it came from (8.2 takes only its own).",
    ),
    "VM_TO_IMPORT_IS_NOT_NEWER_VERSION": Meaning(
        "a full restore would replace a VM that is not older", "Delete the existing VM first, or restore as new."
    ),
    "DUPLICATE_MAC_SEED": Meaning("the original VM, or a copy of it, is still there", "Restore as a new VM."),
    "DUPLICATE_VM": Meaning("the VM exists already", "Restore as a new VM."),
    "EVENT_FROM_TOKEN_PARSE_FAILURE": Meaning("the pool does not know the event token", "Start listening anew."),
}

_TRANSFER_GROUPS = {
    "MAC_STILL_EXISTS MAC_INVALID MAC_DOES_NOT_EXIST": Meaning("the MAC address {p0} cannot be used", "Use another."),
    "EVENTS_LOST SESSION_NOT_REGISTERED EVENT_SUBSCRIPTION_PARSE_FAILURE": Meaning("events were lost", BUG),
}

MEANINGS: dict[str, Meaning] = {**_CONNECTION, **_VM, **_STORAGE, **_TRANSFER}
for _group in (_VM_GROUPS, _STORAGE_GROUPS, _TRANSFER_GROUPS):
    for _codes, _meaning in _group.items():
        MEANINGS.update(dict.fromkeys(_codes.split(), _meaning))
