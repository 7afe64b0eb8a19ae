# Creates .venv in the project's folder; sourced by the other scripts, after they have set `root`.
#
# `setup EXTRA,EXTRA` installs jaxdist (editable, versions as in constraints.txt) with these extras, unless they are
# installed already. PYTHON=python3.13 chooses the interpreter, JAXDIST_EXTRAS=tpu adds extras.

venv=$root/.venv
log=$root/.venv.log
# Line 1: the interpreter's version and the folder. Line 2: what is installed, or `unfinished`.
stamp=$venv/.jaxdist

warn() { printf '%s\n' "$*" >&2; }

# Prints an interpreter's version, as 3.11; fails where that is too old or the interpreter does not start.
version_of() {
    "$1" -I -S -c 'import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the interpreter to create .venv with; for one of a virtual environment, its base interpreter.
find_python() {
    local name
    local names=(python3 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
    for name in "${names[@]}"; do
        if version_of "$name" >/dev/null; then
            "$name" -I -S -c 'import sys; print(sys._base_executable)'
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        warn "PYTHON=$PYTHON does not start a Python 3.11 or newer, which jaxdist needs."
    else
        warn 'jaxdist needs Python 3.11 or newer: none of python3, python3.13, python3.12 and python3.11 is.'
        warn "Install one, or give its path: PYTHON=/path/to/python3.13 $0"
    fi
    return 1
}

# Whether .venv was created in this folder, by an interpreter that still works and has the requested version.
is_made() {
    local version
    version=$(version_of "$venv/bin/python") || return
    [ "$(sed -n 1p "$stamp" 2>/dev/null)" = "$version $root" ] || return
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$version" ]
}

# is_ready SUM EXTRAS: whether these versions and extras are installed.
is_ready() {
    local extra installed
    is_made || return
    installed=$(sed -n 2p "$stamp")
    [ "${installed% *}" = "$1" ] || return
    for extra in ${2//,/ }; do
        case ",${installed##* }," in *",$extra,"*) ;; *) return 1 ;; esac
    done
}

# The lock lasts until this shell closes descriptor 9. Python acquires it, since not every system has `flock`.
lock() {
    "$1" -I -S -c 'import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another set-up of .venv to end", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print(f"continuing without a lock, start no second set-up now: {error}", file=sys.stderr)'
}

# make PYTHON: creates an empty .venv, and writes the stamp's first line once it is complete.
make() {
    rm -rf "$venv" || return
    if command -v uv >/dev/null; then
        uv venv --seed --python "$1" "$venv" || return
    else
        "$1" -m venv "$venv" || return
    fi
    printf '%s %s\nunfinished\n' "$(version_of "$venv/bin/python")" "$root" >"$stamp"
}

# install SUM EXTRAS: the stamp has `unfinished` until everything is installed.
install() {
    local interpreter
    interpreter=$(sed -n 1p "$stamp")
    printf '%s\nunfinished\n' "$interpreter" >"$stamp" || return
    cd "$root" || return
    if command -v uv >/dev/null; then
        uv pip install --python "$venv/bin/python" --constraint constraints.txt --editable ".[$2]" || return
    else
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
            --constraint constraints.txt --editable ".[$2]" || return
    fi
    printf '%s\n%s %s\n' "$interpreter" "$1" "$2" >"$stamp.new" && mv "$stamp.new" "$stamp"
}

setup() {
    local extras=$1${JAXDIST_EXTRAS:+,$JAXDIST_EXTRAS} python sum
    sum=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum | tr ' ' '-')
    if is_ready "$sum" "$extras"; then return; fi

    python=$venv/bin/python
    is_made || python=$(find_python) || exit
    if ! [ -w "$root" ]; then
        warn "cannot create $venv: the folder is not writable. Copy the project to a writable one."
        exit 1
    fi
    exec 9>>"$log"
    lock "$python"
    if ! is_ready "$sum" "$extras"; then
        warn "setting up $venv: minutes the first time, nothing the next (log: $log)"
        : >"$log"
        if ! { is_made || make "$python"; } >&9 2>&1 || ! (install "$sum" "$extras") >&9 2>&1; then
            cat "$log" >&2
            warn "the set-up failed; the reason is above and in $log. Start again to retry."
            exit 1
        fi
    fi
    exec 9>&-
}
