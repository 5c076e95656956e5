#!/usr/bin/env bash
# Makes the virtual environment $VENV (default .venv) and installs world-r1 into it, editable. Does nothing if that is done already.
#
# Python:  $PYTHON, or the first of python3, python3.12, python3.11, python3.13 that is 3.11 to 3.13.
# torch:   one that sees a GPU is used as it is (the environment then sees the system's packages); otherwise pip or uv installs it.
# Wheels:  a local folder in PIP_FIND_LINKS is used by uv as well.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-dev}
stamp=$VENV/.world-r1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
apt() { # installs Debian packages where that is possible without asking
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $*"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } </dev/null >&2
}

wanted=$({ cat pyproject.toml scripts/setup.sh; pwd; echo "$EXTRAS"; } | cksum)
if [ -x "$VENV/bin/world-r1" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
        if command -v "$candidate" >/dev/null && usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

if ! [ -x "$VENV/bin/python" ] || ! usable "$VENV/bin/python"; then
    python=$(find_python) || { apt python3 python3-venv && python=$(find_python); } ||
        fail "world-r1 needs Python 3.11, 3.12 or 3.13 (found: $(python3 --version 2>&1 || echo none)); install one, or name it: make PYTHON=/path/to/python3.12 ..."
    options=()
    if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        say "using the installed torch, which sees a GPU"
        options+=(--system-site-packages)
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        apt "$package" || fail "$python cannot make virtual environments; install them: sudo apt-get install -y $package"
    fi
    say "making $VENV with $("$python" --version)"
    rm -rf "$VENV"
    "$python" -m venv "${options[@]}" "$VENV"
fi

pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
target=".${EXTRAS:+[$EXTRAS]}"
with_uv() {
    # uv does not see the system's packages and would install a second torch beside the one that works
    grep -q 'include-system-site-packages = true' "$VENV/pyvenv.cfg" && return 1
    local uv
    uv=$(command -v uv) || { "${pip[@]}" uv && uv=$VENV/bin/uv; } || return 1
    if [ -d "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=$PIP_FIND_LINKS; fi
    # Compiled here once: where PYTHONDONTWRITEBYTECODE is set, every process would compile torch and diffusers anew (20 s, not 8)
    "$uv" pip install --quiet --compile-bytecode --python "$VENV/bin/python" -e "$target"
}
say "installing world-r1 and what it needs (minutes the first time)"
with_uv || "${pip[@]}" -e "$target"

# native libraries that a wheel expects from the system
needed=$("$VENV/bin/python" - <<'PYTHON'
import importlib
import sys

from world_r1.errors import LIBRARIES

for name in ("av", "cv2", "torch", "ray"):
    try:
        importlib.import_module(name)
    except ImportError as error:
        known = [package for library, package in LIBRARIES.items() if library in str(error)]
        print(*known)
        if not known:
            sys.exit(f"setup: {name} does not import: {error}")
PYTHON
)
if [ -n "$needed" ]; then
    # shellcheck disable=SC2086  (a list of packages)
    apt $needed || fail "system libraries are missing; install them: sudo apt-get install -y $needed"
fi
printf '%s' "$wanted" >"$stamp"
