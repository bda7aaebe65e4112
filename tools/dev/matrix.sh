#!/usr/bin/env bash
# Try mmffnet with other versions of Python and of the packages that it stands on.
#
#     tools/dev/matrix.sh [--folder DIR] [--keep] [NAME...]
#
# Makes the environments of these names (all of the table below by default), one after another and
# 5 to 6 GB each, runs tools/dev/smoke.py in each, and writes what was seen to
# docs/versions/NAME.json and, with what earlier calls saw, to docs/versions.md. An environment is
# deleted after its run unless --keep is given; DIR is a temporary folder by default.
set -euo pipefail

# Name, Python, and what differs from requirements/direct.in ('-NAME' leaves NAME out).
table='
py310        3.10
py311        3.11
py312        3.12
py313        3.13
py314        3.14
torch-floor  3.11 torch==2.6.0 torchvision==0.21.0
floors       3.10 torch==2.6.0 torchvision==0.21.0 mmengine==0.10.4 mmcv-lite==2.0.1 mmdet==3.2.0 mmsegmentation==1.2.1 mmpretrain==1.1.0
torch-newest 3.13 torch torchvision
mmengine-rc  3.11 mmengine==0.11.0rc3 torch torchvision setuptools>=82
onedl        3.12 -mmengine -mmcv-lite -mmdet -mmsegmentation -mmpretrain onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain -setuptools
'
# of direct.in: what a smoke run needs
parts='torch|torchvision|mmengine|mmcv-lite|mmdet|mmsegmentation|mmpretrain|opencv-python-headless|ftfy|regex|setuptools'

say() { echo "matrix: $*"; }
fail() {
    echo "matrix: error: $*" >&2
    exit 2
}

requirements() { # requirements CHANGES...: one a line
    local change left
    left=$(grep -E "^($parts)([=<>]|$)" requirements/direct.in)
    for change in "$@"; do
        left=$(grep -vE "^$(sed 's/^-//; s/[=<>].*//' <<<"$change")([=<>]|$)" <<<"$left")
        [[ $change == -* ]] || left+=$'\n'$change
    done
    echo "$left"
}

interpreter() { # interpreter 3.11: one that runs
    local python
    for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
}

record() { # record NAME PYTHON REASON: that there was nothing to run
    python3 - "$@" >"docs/versions/$1.json" <<'END'
import datetime, json, sys

_, _, python, reason = sys.argv
print(json.dumps(dict(date=str(datetime.date.today()), python=python, failed=reason), indent=1))
END
    say "$1: $3"
}

try() { # try NAME PYTHON CHANGES...
    local name=$1 version=$2 venv=$folder/$1 log=$folder/$1.log python seen
    shift 2
    python=$(interpreter "$version")
    if [ -z "$python" ]; then
        requirements "$@" >"$folder/$name.txt"
        seen='pip finds wheels of all parts for it'
        python3 -m pip install --quiet --dry-run --ignore-installed --only-binary :all: \
            --python-version "$version" --target "$folder/none" -r "$folder/$name.txt" \
            >"$log" 2>&1 || seen="$(reason "$log")"
        record "$name" "$version" "no interpreter where this was run; $seen"
        return
    fi
    say "$name: making $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    requirements "$@" >"$venv/requirements.txt"
    if ! install "$venv" >"$log" 2>&1; then
        record "$name" "$version" "cannot be installed: $(reason "$log")"
    else
        say "$name: running"
        "$venv/bin/python" tools/dev/smoke.py --json "docs/versions/$name.json" 2>>"$log" ||
            say "$name: the whole output is in $log"
    fi
    [ -n "$keep" ] || rm -rf "$venv"
}

reason() { # reason LOG: what pip gave as its reason
    grep -iE '^ *error: (no matching|cannot|failed|invalid|.*conflict)' "$1" | tail -n 1 | sed 's/^ *//' ||
        tail -n 1 "$1"
}

install() { # install VENV
    local pip=("$1/bin/python" -m pip --disable-pip-version-check)
    local add=("${pip[@]}" install --no-compile --progress-bar off)
    # The packages of onedl are built from their sources: onedl-mmcv without its operators, as pip
    # builds where no torch is to be seen.
    "${add[@]}" --upgrade pip && "${add[@]}" -r "$1/requirements.txt" &&
        # mmengine asks for its twin, which writes the same files and needs the system's libGL
        "${pip[@]}" uninstall --yes opencv-python &&
        "${add[@]}" --no-deps --force-reinstall "$(grep '^opencv' "$1/requirements.txt")" &&
        "${add[@]}" --no-deps --editable . && rm -rf mmffnet.egg-info
}

folder=
keep=
names=()
while [ $# -gt 0 ]; do
    case $1 in
    --folder) folder=${2:?--folder needs a folder} && shift ;;
    --keep) keep=yes ;;
    -*) fail "no option $1: see the beginning of $0" ;;
    *) names+=("$1") ;;
    esac
    shift
done
[ -z "$folder" ] || { mkdir -p "$folder" && folder=$(cd "$folder" && pwd); }
cd "$(dirname "$0")/../.."
mapfile -t known < <(awk 'NF { print $1 }' <<<"$table")
for name in "${names[@]}"; do
    printf '%s\n' "${known[@]}" | grep -qx -- "$name" || fail "no environment $name: there are ${known[*]}"
done
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    [ -n "$keep" ] || trap 'rm -rf "$folder"' EXIT
fi
mkdir -p docs/versions
for name in "${names[@]:-${known[@]}}"; do
    read -ra row < <(awk -v name="$name" '$1 == name' <<<"$table")
    try "${row[@]}"
done
python3 tools/dev/versions_table.py
