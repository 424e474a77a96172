# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What every repository carries for the day on which nothing but stock tools is at hand."""
from __future__ import annotations

GUIDE = """\
# Restoring from this repository without Guestark

Everything here opens with stock tools: a POSIX shell with the usual utilities, `ssh-keygen` (OpenSSH 8.2 or newer),
`sha256sum`, `age`, `zstd`, GNU `tar` and, to send the result to a pool, `curl`.
On Debian: `apt-get install openssh-client coreutils age zstd tar curl`.

You need three things from elsewhere:

- an identity that opens the data: a file with a line `AGE-SECRET-KEY-1...` (not needed if nothing is encrypted);
- the allowed signers: a file with a line `mover ssh-ed25519 AAAA...` for each machine whose backups you trust;
- this repository's `restore-xva.sh`. Whoever can write here could have changed it: read it before you run it, it is
  short, or take it from another copy.

## What lies where

    vm/<uuid of the VM>/pt/<point>.sum       a restore point: signed list of the objects it needs, with their SHA-256
    vm/<uuid of the VM>/seg/                 the data, an archive as XAPI exports it (XVA), compressed, encrypted
    vm/<uuid of the VM>/idx/, meta/          indexes; names, disks, times and warnings

Names of points begin with the time (UTC) and are followed by a sequence number: the highest number is the newest.
To learn which VM is which, open the metadata of its newest point:

    age -d -i IDENTITY vm/UUID/meta/POINT.json.age

## Restoring

    sh restore-xva.sh IDENTITY ALLOWED_SIGNERS vm/UUID/pt/POINT.sum OUT.xva

It checks the signature and every object's SHA-256 first and stops at the first doubt. Give `-` as IDENTITY when the
names end without `.age`. Points made of several layers (`layers=` in the list) need room for the whole VM beside
OUT.xva; a temporary directory is made there and removed.

Then send it to a host of the pool, as root or as a user who may import VMs. `curl` asks for the password:

    curl --fail --cacert CA.pem -u root -H Expect: -T OUT.xva "https://HOST/import?sr_uuid=SR-UUID" -o /dev/null

HOST is one that sees the storage (for local storage, the one it is in). Or, on the host itself,
`xe vm-import filename=OUT.xva sr-uuid=SR-UUID`. That the transfer ended does not mean that the import succeeded: look
for the VM, or for the error in the pool's tasks.

## By hand

What the script does for a point of one layer, with the folder of the VM as the working directory:

    ssh-keygen -Y find-principals -f ALLOWED_SIGNERS -s pt/POINT.sum.sig
    ssh-keygen -Y verify -n guestark-restore-point -f ALLOWED_SIGNERS -I PRINCIPAL -s pt/POINT.sum.sig < pt/POINT.sum
    sha256sum --check --strict pt/POINT.sum
    for segment in seg/POINT-*.age; do age -d -i IDENTITY "$segment"; done | zstd -d > OUT.xva

Without the first three lines nothing says who wrote what you restore: `age` does not.
"""

SCRIPT = r"""#!/bin/sh
# Rebuilds an XVA from a restore point with ssh-keygen, sha256sum, age, zstd and GNU tar alone; see RESTORE.md.
# usage: sh restore-xva.sh IDENTITY ALLOWED_SIGNERS POINT.sum OUT.xva
#        IDENTITY is - for a repository without encryption
set -eu
export LC_ALL=C
umask 077

fail() {
    echo "restore-xva: $*" >&2
    exit 1
}

absolute() {
    case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

[ $# -eq 4 ] || fail "usage: sh restore-xva.sh IDENTITY ALLOWED_SIGNERS POINT.sum OUT.xva"
identity=$1
[ "$identity" = - ] || identity=$(absolute "$1")
signers=$(absolute "$2")
sum=$(absolute "$3")
out=$(absolute "$4")
[ -r "$signers" ] || fail "cannot read $signers"
[ -r "$sum" ] || fail "cannot read $sum"
[ "$identity" = - ] || [ -r "$identity" ] || fail "cannot read $identity"
[ ! -e "$out" ] || fail "$out exists"
point=$(basename "$sum" .sum)
vm=$(basename "$(dirname "$(dirname "$sum")")")

work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cp "$sum" "$work/sum"

# 1. Who made this list? Nothing in it is used before that is known.
signature=$sum.sig
principal=$(ssh-keygen -Y find-principals -f "$signers" -s "$signature" 2>/dev/null | head -n 1) || :
principal=${principal%%,*}
[ -n "$principal" ] || fail "nobody among the allowed signers signed $sum"
ssh-keygen -Y verify -n guestark-restore-point -f "$signers" -I "$principal" -s "$signature" \
    <"$work/sum" >/dev/null 2>&1 || fail "the signature does not fit: $sum was changed"
[ "$(sed -n 's/^# point //p' "$work/sum")" = "$point" ] || fail "this is the list of another point"
[ "$(sed -n 's/^# vm //p' "$work/sum")" = "$vm" ] || fail "this is the list of another VM"

# 2. Is everything there, and unchanged?
id='[0-9]\{8\}T[0-9]\{6\}Z-[0-9]\{6\}-[0-9a-f]\{12\}'
objects=$work/objects
grep -v '^#' "$work/sum" >"$objects" || fail "the list is empty"
! grep -v "^[0-9a-f]\{64\}  \(seg/$id-[0-9]\{3,6\}\.xva\.zst\|idx/$id\.idx\|meta/$id\.json\)\(\.age\)\{0,1\}\$" \
    "$objects" >/dev/null || fail "the list names something that is no object"
[ "$(sed -n 's/^# end //p' "$work/sum")" = "$(grep -c . "$objects")" ] || fail "the list is cut short"
cd "$(dirname "$sum")/.."
sha256sum --check --strict --quiet "$objects" >&2 || fail "objects are missing or damaged"
sed -n 's/^[0-9a-f]*  \(seg\/.*\)$/\1/p' "$objects" >"$work/segments"
layers=$(grep -c '  idx/' "$objects")

# 3. Decrypt and decompress. A pipe hides all exit codes but the last one: the others are left in a file.
decrypt() {
    case $1 in
    *.age) age -d -i "$identity" "$1" ;; # without an identity age itself refuses
    *) cat "$1" ;;
    esac
}

unpack() { # one tar stream out of the segments named on standard input
    while read -r segment; do
        decrypt "$segment" || echo "$segment" >>"$work/bad"
    done | { zstd -dcq || echo "zstd" >>"$work/bad"; }
}

members='^\(ova\.xml\|Ref:[0-9]\{1,12\}/[0-9]\{8\}\(\.checksum\|\.xxhash\)\{0,1\}\)$'
check_members() { # names on standard input
    ! grep -v "$members" >/dev/null || fail "the archive holds something that is no disk"
}

if [ "$layers" -eq 1 ]; then
    unpack <"$work/segments" >"$work/xva"
    [ ! -e "$work/bad" ] || fail "cannot be decrypted or decompressed: $(cat "$work/bad")"
    tar -tf "$work/xva" >"$work/names" || fail "the archive is damaged"
    tar -tvf "$work/xva" >"$work/kinds" || fail "the archive is damaged"
    check_members <"$work/names"
    ! grep -v '^-' "$work/kinds" >/dev/null || fail "the archive holds links or devices"
else
    # Later layers replace blocks of earlier ones, so they are laid over each other as files.
    mkdir "$work/files"
    while read -r segment; do
        echo "$segment" | unpack |
            tar -C "$work/files" --no-same-owner --no-same-permissions -xf - || echo "$segment" >>"$work/bad"
        [ ! -e "$work/bad" ] || fail "cannot be unpacked: $(cat "$work/bad")"
        # nothing but plain files under the right names, whatever a layer tried to put there
        find "$work/files" ! -type d ! -type f >"$work/names"
        [ ! -s "$work/names" ] || fail "the archive holds links or devices"
        (cd "$work/files" && find . -type f) | sed 's/^\.\///' >"$work/names"
        check_members <"$work/names"
    done <"$work/segments"
    # Only the disks of the newest description, each block with its checksum behind it, in the order of their bytes.
    (
        cd "$work/files"
        {
            echo ova.xml
            grep -o 'Ref:[0-9]*' ova.xml | sort -u | while read -r disk; do
                [ ! -d "$disk" ] || find "$disk" -type f | sort
            done
        } >"$work/names"
        tar --format=ustar --owner=0 --group=0 --mode=0644 --no-recursion -T "$work/names" -cf "$work/xva"
    ) || fail "the archive cannot be written"
fi
mv "$work/xva" "$out"

echo "$out: VM $vm at restore point $point, signed by $principal" >&2
echo "Send it to a pool with:" >&2
echo "curl --fail --cacert CA.pem -u root -H Expect: -T $out 'https://HOST/import?sr_uuid=UUID' -o /dev/null" >&2
"""
