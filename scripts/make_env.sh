#!/usr/bin/env bash
# Creates or updates the virtual environment: scripts/make_env.sh [DIR, default .venv]
#
# torch comes first. The plain package may bring several GB of CUDA libraries, so a machine without an
# NVIDIA GPU asks for the CPU build in two ways before it takes the plain one; a machine with a GPU takes
# the plain one at once. Everything else follows under constraints.txt, which names every version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}

say() { printf 'env: %s\n' "$*" >&2; }
die() { printf 'env: error: %s\n' "$*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14 python}; do
        if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; found $(python3 --version 2>&1 || echo none)." \
        "Install one, or name it: make env PYTHON=/path/to/python3.11"
}

installed_torch() { "$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }

install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    if [[ "$(installed_torch)" == "$version"* ]]; then
        say "torch $(installed_torch) is here"
        return
    fi
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        say "torch $version (an NVIDIA GPU is here: the CUDA build)"
        "${pip[@]}" "torch==$version"
        return
    fi
    say "torch $version (CPU build)"
    # 1. wherever pip is configured to look
    "${pip[@]}" "torch==$version+cpu" 2>/dev/null && return
    # 2. uv knows where the CPU builds are published
    if "${pip[@]}" uv 2>/dev/null \
        && "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend=cpu "torch==$version" 2>/dev/null
    then
        return
    fi
    say "warning: no CPU build of torch was found; taking the plain package, which may bring CUDA libraries"
    "${pip[@]}" "torch==$version"
}

if [[ -e $venv ]] && ! is_new_enough "$venv/bin/python"; then
    say "$venv has no Python ≥ 3.11: making it anew"
    rm -rf -- "$venv"
fi
if [[ ! -e $venv ]]; then
    python=$(find_python)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv" || { rm -rf -- "$venv"; die "$python cannot make virtual environments:" \
        "install its venv module (on Debian and Ubuntu: apt install python3-venv)"; }
fi

# -qq: errors only; a progress line stands before each step.
pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input)
started=$SECONDS
install_torch
say "the other dependencies (a few minutes the first time)"
"${pip[@]}" --constraint constraints.txt --editable '.[dev]'
say "ready after $((SECONDS - started)) s: $venv/bin/cascade"
