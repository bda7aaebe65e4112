#!/usr/bin/env bash
# Make the virtual environment that `make test` and its like run in: every package at its pinned
# version, and this checkout as an editable install. `make` calls it when there is no environment
# yet, or when what it is made from has changed.
#
#     PYTHON=python3 tools/dev/setup_env.sh .venv
#
# <venv>/.started exists while an environment is being made or changed, <venv>/.ready afterwards. So
# one that an earlier call left half-made is recognised, and made anew: pip cannot tell a package
# that it was writing when it died from a complete one. What it had downloaded is in its cache.
set -euo pipefail

python=${PYTHON:-python3}
venv=${1:?usage: setup_env.sh FOLDER}
pins=requirements/pins.txt
log=$venv/setup.log

say() { echo "set-up: $*"; }
fail() {
    echo "set-up: error: $*" >&2
    exit 1
}

run_pip() { # run_pip WHAT ARGUMENTS...: pip with its output in the log, large downloads shown
    local what=$1 reason
    shift
    if ! "$venv/bin/python" -m pip install --no-input --no-compile --progress-bar off \
        --disable-pip-version-check "$@" 2>&1 |
        tee -a "$log" | { grep -E --line-buffered '^ *Downloading .*[0-9]{3}\.[0-9] MB' || true; }; then
        rm -f "$venv/.started" # pip gave up in good order: what is there can be built upon
        if grep -qE 'NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|ProxyError|ConnectionError|ProtocolError|IncompleteRead|Connection refused|unreachable' "$log"; then
            fail "cannot reach the package index to install $what: check the network, then call make again"
        fi
        reason=$(grep -E '^(ERROR|error|OSError)' "$log" | tail -n 1 || true)
        fail "pip could not install $what: ${reason:-no reason given} (all of its output: $log)"
    fi
}

# Inherited pip settings that would install elsewhere or change the pins.
export PIP_USER=0
unset PIP_TARGET PIP_PREFIX PIP_CONSTRAINT

cd "$(dirname "$0")/../.."
command -v "$python" >/dev/null ||
    fail "there is no '$python': name a Python 3.10 or newer, as in: make test PYTHON=python3.11"
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') ||
    fail "'$python' does not run: name another, as in: make test PYTHON=python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "'$python' is Python $version, and 3.10 or newer is needed: make test PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "'$python' cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)"

if [ -f "$venv/.started" ]; then
    other=$(cat "$venv/.started")
    if kill -0 "${other:-none}" 2>/dev/null; then
        fail "another set-up of $venv is running (process $other): wait until it is done, or delete $venv/.started"
    fi
    say "an earlier set-up was interrupted: starting again"
    rm -rf "$venv"
elif [ -e "$venv" ] && ! "$venv/bin/python" -c 'import pip, sys; sys.version_info >= (3, 10) or sys.exit(1)' 2>/dev/null; then
    [ -f "$venv/pyvenv.cfg" ] || rmdir "$venv" 2>/dev/null ||
        fail "$venv is in the way: it is not a virtual environment"
    say "$venv is not a working environment: making it anew"
    rm -rf "$venv"
fi

mkdir -p "$venv"
echo $$ >"$venv/.started"
rm -f "$venv/.ready"
SECONDS=0
if [ ! -x "$venv/bin/python" ]; then
    say "making $venv with Python $version and the pinned packages"
    say "about 3 GB: a few minutes the first time"
    "$python" -m venv "$venv" >"$log" 2>&1 || fail "'$python -m venv $venv' failed: $(tail -n 1 "$log")"
else
    say "bringing $venv up to date"
fi
: >"$log"
# pip first: an old one is slower. One retry tells soon that there is no network.
run_pip 'pip' --retries 1 "$(grep '^pip==' $pins)"
# The list is complete, so no dependency has to be looked up (and opencv-python stays out).
run_pip 'the pinned packages' --no-deps -r $pins
run_pip 'mmffnet' --no-deps --no-build-isolation --editable .
mv "$venv/.started" "$venv/.ready"
say "done in $SECONDS s"
