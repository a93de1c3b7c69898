#!/bin/sh
# Check for the system programs that sealserve calls and say what each is for.
# As root, on Debian or Ubuntu, install what is missing; else print the command.
set -eu

# program or file      package          what it is for
needs='
cryptsetup             cryptsetup-bin   formats the LUKS2 volume
veritysetup            cryptsetup-bin   makes the dm-verity tree
mkfs.ext4              e2fsprogs        fills the volume with a file system
fusermount3            fuse3            mounts the volume in user space
libfuse3.so.3          libfuse3-3       the library below it
fuse2fs                fuse2fs          opens the file system without root
libcrypto.so.3         libssl3          AES-XTS at full speed
setpriv                util-linux       ends the server with its guest
'

present() {
    case "$1" in
    *.so.*) PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q "$1" ;;
    *) PATH="$PATH:/sbin:/usr/sbin" command -v "$1" >/dev/null 2>&1 ;;
    esac
}

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: sealserve needs Python 3.11 or newer, and $python is older or missing." \
        "Name one with: make PYTHON=python3.12 ..." >&2
    exit 4
fi

venv_works() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

missing=""
while read -r program package purpose; do
    [ -n "$program" ] || continue
    present "$program" && continue
    echo "sealserve needs $program (package $package): it $purpose" >&2
    case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done <<EOT
$needs
EOT
if ! venv_works; then
    echo "sealserve needs Python's venv module (package python3-venv) for its own environment" >&2
    missing="$missing python3-venv"
fi

[ -n "$missing" ] || exit 0

command="apt-get install -y --no-install-recommends$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: install with your package manager, by Debian's names:$missing" >&2
    exit 4
elif [ "$(id -u)" -ne 0 ]; then
    echo "error: not root, so nothing was installed. Run: sudo apt-get update && sudo $command" >&2
    exit 4
fi
echo "Installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
