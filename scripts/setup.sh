# Sourced by demo, test, check and bench: creates the virtual environment, compiles the CPU kernels, and installs Debian
# packages if run as root. Usage: source scripts/setup.sh; setup EXTRA,EXTRA…; need PROGRAM DEBIAN-PACKAGE
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The tests start hundreds of processes; without caches each would compile what it imports.
unset PYTHONDONTWRITEBYTECODE

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; [ -n "${2:-}" ] && printf '\nhint: %s\n' "$2" >&2; exit 1; }

# debian PACKAGE…: installs them if this is Debian and we are root.
debian() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "installing $*"
  # Non-interactive: no configuration questions.
  apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# need PROGRAM PACKAGE [BREW-PACKAGE]: returns 0 if the program is installed or could be installed.
need() {
  PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin" command -v "$1" >/dev/null && return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    debian "$2" || true
  elif command -v brew >/dev/null; then
    brew install "${3:-$2}" >&2
  fi
  PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin" command -v "$1" >/dev/null
}

# Returns 0 if C compiles. A compiler alone is not enough: Debian has the headers in a separate package. Picks the same
# compiler as edgekit/runners/cpu/build.py.
compiles() {
  local cc=${EDGEKIT_KERNEL_CC:-${CC:-}}
  [ -n "$cc" ] || cc=$(command -v cc || command -v gcc || command -v clang) || return 1
  # shellcheck disable=SC2086 # $cc may contain arguments
  printf '#include <pthread.h>\n' | $cc -fsyntax-only -x c - 2>/dev/null
}

# setup EXTRAS [VENV]: installs edgekit with these extras into VENV (.venv) and puts its programs first on PATH. With
# FLOORS set, every dependency has the oldest version that pyproject.toml allows.
setup() {
  local python stamp wanted venv=${2:-.venv} constraints=()
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    die "edgekit needs Python 3.10 or newer" "choose one: PYTHON=python3.12 $0"
  if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null || need python3-venv python3-venv || true
    "$python" -m venv "$venv" || die "cannot create a virtual environment" "apt install python3-venv"
  fi
  compiles || debian gcc libc6-dev || true
  export PATH="$PWD/$venv/bin:$PATH"
  unset VIRTUAL_ENV PYTHONPATH
  wanted="$(cksum <pyproject.toml) $1"
  stamp="$venv/edgekit-extras"
  if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    say "installing edgekit-llm[$1] into $venv"
    if [ -n "${FLOORS:-}" ]; then
      python scripts/floors.py "$1" >"$venv/floors.txt" || die "the oldest versions are not known"
      constraints=(-c "$venv/floors.txt")
    fi
    python -m pip install --quiet --progress-bar off ${constraints[@]+"${constraints[@]}"} -e ".[$1]" >&2 ||
      die "pip could not install edgekit-llm[$1]"
    grep -sF "$(cksum <pyproject.toml)" "$stamp" >"$stamp.new" || true
    echo "$wanted" >>"$stamp.new" && mv "$stamp.new" "$stamp"
  fi
  # The installation above compiles the CPU kernels; compile them again if their sources have changed since.
  if compiles; then
    python -I edgekit/runners/cpu/build.py --strict || die "the CPU kernels do not compile"
  else
    say "no C compiler found: onnxruntime runs models on the CPU, more slowly (apt install gcc libc6-dev, or xcode-select --install)"
  fi
}

# clients: installs the libraries of tests/clients/requirements*.txt into .venv-clients, Node.js among them, and those of
# package.json into its folder `node`, once for each version of the lists.
clients() {
  local venv=.venv-clients lists=tests/clients wanted pip
  wanted=$(cat "$lists"/requirements*.txt "$lists/package.json" | cksum)
  if ! grep -qxF "$wanted" "$venv/edgekit-clients" 2>/dev/null; then
    say "installing client libraries into $venv"
    rm -rf "$venv"
    python -m venv "$venv" || return 1
    # Not compiled: the tests import few of their modules.
    pip=("$venv/bin/python" -m pip install --quiet --progress-bar off --no-compile)
    "${pip[@]}" -r "$lists/requirements.txt" >&2 || return 1
    "${pip[@]}" --no-deps -r "$lists/requirements-no-deps.txt" >&2 || return 1
    mkdir "$venv/node" && cp "$lists/package.json" "$venv/node/" || return 1
    # npm runs the `node` of its own folder.
    PATH=$PWD/$venv/bin:$PATH "$venv/bin/npm" install --prefix "$venv/node" --no-audit --no-fund --loglevel=error >&2 ||
      rm -rf "$venv/node"
    echo "$wanted" >"$venv/edgekit-clients"
  fi
}

# shellcheck disable=SC2034  # read by those who source this
ALL_EXTRAS=export,onnxruntime,mlx,tensorrt-rtx,daemon,dev
