#!/bin/sh
# Installs this kit of fer-edge without a network: sh install.sh [--prefix DIR] [--python FILE] [--check]
#
# Every file is compared with SHA256SUMS before anything is installed. Nobody has to be root. DIR (as root /opt/fer-edge,
# else ~/fer-edge) gets releases/, one folder for each kit; current, a link to the one in use; and bin/fer-edge.
# A kit that fails 'fer-edge verify' on this box is not put in use. A second run finds the first one's work.
# All of it stands in functions, so that a file that was cut short does nothing.
set -eu
umask 022
unset CDPATH
LC_ALL=C
export LC_ALL

fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 2
}

say() {
    printf '%s\n' "$*" >&2
}

# Every file is there, is the one that was packed, and there is no other.
check() {
    command -v sha256sum >/dev/null 2>&1 || fail "sha256sum is not on this box, and without it nothing can be checked"
    [ -f SHA256SUMS ] || fail "SHA256SUMS is missing: this is no whole kit"
    strange=$(find . ! -type f ! -type d | head -n 1)
    [ -z "$strange" ] || fail "$strange is neither a file nor a folder; a kit has no links: nothing was installed"
    if grep -q -v -x -E '[0-9a-f]{64}  [A-Za-z0-9][A-Za-z0-9._+/-]*' SHA256SUMS; then
        fail "SHA256SUMS was altered or truncated; bring the kit anew: nothing was installed"
    fi
    listed=$(cut -c 67- SHA256SUMS | sort)
    there=$(find . -type f ! -path ./SHA256SUMS | cut -c 3- | sort)
    if [ "$listed" != "$there" ]; then
        for file in $listed; do
            [ -f "$file" ] || fail "$file is missing from the kit; bring it anew: nothing was installed"
        done
        fail "$(odd_one) is no file of this kit; remove it: nothing was installed"
    fi
    if ! sha256sum -c SHA256SUMS >/dev/null 2>&1; then
        wrong=$(sha256sum -c SHA256SUMS 2>/dev/null | grep -v ': OK$' | head -n 1)
        fail "${wrong%: *} was altered or cannot be read; bring the kit anew: nothing was installed"
    fi
}

# The first file that SHA256SUMS does not name.
odd_one() {
    find . -type f ! -path ./SHA256SUMS | cut -c 3- | sort | while IFS= read -r file; do
        cut -c 67- SHA256SUMS | grep -q -x -F -e "$file" || printf '%s\n' "$file" | tr -cd '[:print:]'
    done | head -c 300
}

# Whether a Python is one that the wheels of this kit are for; prints what it is.
facts() {
    "$1" -I -c 'import platform, struct, sys
libc, version = platform.libc_ver()
print(platform.python_implementation(), "%d.%d" % sys.version_info[:2], platform.machine(), struct.calcsize("P") * 8, libc)
wanted = ("CPython", "@PYTHON@", "@MACHINE@", @BITS@, "glibc")
found = (platform.python_implementation(), "%d.%d" % sys.version_info[:2], platform.machine(), struct.calcsize("P") * 8, libc)
print("glibc", version or "unknown")
new = version and [int(part) for part in version.split(".")[:2]] >= [int(part) for part in "@GLIBC@".split(".")]
sys.exit(0 if found == wanted and new else 1)' 2>/dev/null
}

find_python() {
    if [ -n "$python" ]; then
        found=$(facts "$python") && return
        fail "$python is not CPython @PYTHON@ for @MACHINE@ with glibc @GLIBC@ or newer$(told)"
    fi
    for python in python@PYTHON@ /usr/bin/python@PYTHON@ /usr/local/bin/python@PYTHON@ python3; do
        command -v "$python" >/dev/null 2>&1 && found=$(facts "$python") && return
    done
    fail "this kit needs CPython @PYTHON@ for @MACHINE@ with glibc @GLIBC@ or newer; name it: --python FILE$(told)"
}

# What the last Python said of itself.
told() {
    [ -z "${found:-}" ] || printf ' (it is: %s)' "$(printf '%s' "$found" | tr '\n' ' ')"
}

# Runs a step that says nothing when it is well; else its first error, or its last line, is the reason. Kept in memory: the
# disk may be full.
quietly() {
    what=$1
    shift
    text=$("$@" 2>&1) || fail "$what: $(reason | tr -cd '[:print:]' | cut -c 1-300)"
}

reason() {
    printf '%s\n' "$text" | grep -m 1 '^ERROR: ' || printf '%s\n' "$text" | grep -v '^ *$' | tail -n 1
}

leave() {
    trap - EXIT
    [ -z "${release:-}" ] || [ -f "$release/complete" ] || rm -rf "$release"
    exit "${status:-2}"
}

# One name for another in one step.
put() {
    "$python" -I -c 'import os, sys; os.replace(*sys.argv[1:])' "$1" "$2"
}

fill() {
    mkdir -p "$release"
    say "installing $(grep -c == requirements.txt) packages into $release"
    quietly "$python makes no environment" "$python" -I -m venv --without-pip "$release/venv"
    inside=$release/venv/bin/python
    quietly "the packages cannot be installed" env PIP_CONFIG_FILE=/dev/null TMPDIR="$release" "$inside" -I tools/@PIP@/pip \
        --isolated --disable-pip-version-check --no-input --no-cache-dir install --quiet --no-index --find-links wheels \
        --only-binary :all: --no-deps --require-hashes --requirement requirements.txt
    quietly "the packages do not fit together" env PIP_CONFIG_FILE=/dev/null "$inside" -I tools/@PIP@/pip --isolated \
        --disable-pip-version-check check
    quietly "the bundle cannot be copied" cp -R bundle kit.json sbom.cdx.json "$release"
    for part in detector fer-edge-watch.service; do
        [ ! -e "$part" ] || quietly "$part cannot be copied" cp -R "$part" "$release"
    done
    if [ -f "$release/fer-edge-watch.service" ]; then
        home=yes
        case $prefix/ in /home/* | /root/* | /run/user/*) home=read-only ;; esac
        quietly "the unit cannot be written" sed -i -e "s|@PREFIX@|$prefix|g" -e "s|^ProtectHome=.*|ProtectHome=$home|" \
            "$release/fer-edge-watch.service"
    fi
    say "verifying the bundle on this box"
    quietly "the bundle does not verify on this box" verify
    : >"$release/complete"
}

verify() {
    "$release/venv/bin/fer-edge" verify "$release/bundle" --runtime @RUNTIME@
}

main() {
    prefix='' python='' only_check=''
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix | --python)
                [ $# -gt 1 ] && [ -n "$2" ] || fail "$1 needs a value"
                if [ "$1" = --prefix ]; then prefix=$2; else python=$2; fi
                shift
                ;;
            --check) only_check=yes ;;
            -h | --help)
                echo "sh install.sh [--prefix DIR] [--python FILE] [--check]"
                exit 0
                ;;
            *) fail "$1 is unknown; there are --prefix DIR, --python FILE and --check" ;;
        esac
        shift
    done
    if [ -z "$prefix" ] && [ "$(id -u)" -eq 0 ]; then prefix=/opt/fer-edge; fi
    if [ -z "$prefix" ]; then prefix=${HOME:?}/fer-edge; fi
    case $prefix in /*) ;; *) prefix=$(pwd)/$prefix ;; esac
    case $python in ?*/*) case $python in /*) ;; *) python=$(pwd)/$python ;; esac ;; esac
    cd -- "$(dirname -- "$0")"
    check
    [ -z "$only_check" ] || { say "every file is the one that was packed"; exit 0; }

    case $prefix in *[!A-Za-z0-9/._+-]*) fail "a prefix has only letters, digits and / . _ + -: $prefix" ;; esac
    prefix=${prefix%/}
    find_python
    name=$(sha256sum SHA256SUMS | cut -c 1-16)
    mkdir -p "$prefix/releases" "$prefix/bin" 2>/dev/null && [ -w "$prefix/releases" ] && [ -w "$prefix/bin" ] ||
        fail "$prefix cannot be written; name a folder of yours: --prefix DIR"
    before=$(readlink "$prefix/current" 2>/dev/null || true)
    release=$prefix/releases/$name
    trap 'status=$?; leave' EXIT
    trap 'say "Interrupted."; exit 130' INT
    trap 'say "Terminated."; exit 143' TERM HUP
    if [ -f "$release/complete" ] && verify >/dev/null 2>&1; then
        say "this kit is installed already"
    else
        rm -rf "$release"
        fill
    fi
    ln -sfn "releases/$name" "$prefix/current.new"
    put "$prefix/current.new" "$prefix/current"
    ln -sfn ../current/venv/bin/fer-edge "$prefix/bin/fer-edge.new"
    put "$prefix/bin/fer-edge.new" "$prefix/bin/fer-edge"
    # The one before stays, for a watch that still runs from it, and to go back to.
    for old in "$prefix"/releases/*; do
        case $old in "$release" | "$prefix/${before:-none}") ;; *) rm -rf "$old" ;; esac
    done
    say "installed: $prefix/bin/fer-edge, $prefix/current/bundle"
    [ ! -f "$release/fer-edge-watch.service" ] || say "a service: $prefix/current/fer-edge-watch.service says how"
}

main "$@"
