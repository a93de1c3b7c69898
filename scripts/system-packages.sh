#!/bin/sh
# Check for the system programs that sealserve calls and say what each is for.
# As root, on Debian or Ubuntu, install what is missing; else print the command.
#
#     scripts/system-packages.sh           what the product needs
#     scripts/system-packages.sh --tests   also what only tests need: without root they
#                                          are named, and the tests that miss them skipped
set -eu

# program or file      package          what it is for
product() {
    cat <<'END'
cryptsetup             cryptsetup-bin   formats the LUKS2 volume
veritysetup            cryptsetup-bin   makes the dm-verity tree
mkfs.ext4              e2fsprogs        fills the volume with a file system
fusermount3            fuse3            mounts the volume in user space
libfuse3.so.3          libfuse3-3       shows a simulated TD
fuse2fs                fuse2fs          opens the file system without root
mkfs.erofs             erofs-utils      fills a volume that is read-only by nature
libcrypto.so.3         libssl3          AES-XTS at full speed
setpriv                util-linux       ends the server with its guest
END
}

tests() {
    cat <<'END'
openssl                openssl          judges our certificates and ciphers
chromium               chromium         opens the operator's page
swtpm                  swtpm            a TPM to speak to, as on Azure
qemu-system-x86_64     qemu-system-x86  boots a kernel with device-mapper
psql                   postgresql       a database for several brokers
softhsm2-util          softhsm2         an HSM in software, for the broker's key
zstd                   zstd             unpacks the modules of a Ubuntu kernel
END
}

python=${PYTHON:-python3}

present() {
    case "$1" in
    *.so.*) PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q "$1" ;;
    *) PATH="$PATH:/sbin:/usr/sbin" command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# Prints the packages of a list that are not there; says what each is for.
missing_of() {
    "$1" | while read -r program package purpose; do
        [ -n "$program" ] || continue
        present "$program" && continue
        echo "missing: $program (package $package): $purpose" >&2
        echo "$package"
    done | sort -u | tr '\n' ' '
}

install() {
    echo "Installing: $*" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

can_install() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; }

advice() { echo "sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: sealserve needs Python 3.11 or newer, and $python is older or missing." \
        "Name one with: make PYTHON=python3.12 ..." >&2
    exit 4
fi

packages=$(missing_of product)
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "missing: Python's venv module (package python3-venv): its own environment" >&2
    packages="$packages python3-venv"
fi
# shellcheck disable=SC2086  # a list of packages, meant to be split
if [ -n "$packages" ]; then
    if can_install; then
        install $packages
    else
        echo "error: nothing was installed (not root, or no apt-get). Run: $(advice $packages)" >&2
        exit 4
    fi
fi

[ "${1:-}" = "--tests" ] || exit 0
packages=$(missing_of tests)
# shellcheck disable=SC2086
if [ -n "$packages" ]; then
    if can_install; then
        install $packages
    else
        echo "note: some tests will be skipped. To run them: $(advice $packages)" >&2
    fi
fi

# The kernel that those tests boot is brought by apt, which must know what there is.
if can_install && ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; then
    apt-get update -qq
fi
