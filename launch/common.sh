# shellcheck shell=bash disable=SC2034
# Shared by launch/quickstart, test, sweep, gpu-deps and gpu-check; sourced, not run. Expects the repository root as the folder.

build_packages=(g++ cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libyaml-cpp-dev libdnnl-dev
  libcli11-dev nlohmann-json3-dev libfmt-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev libeigen3-dev zlib1g-dev
  libzstd-dev)
corpus_packages=(dict-gcide)               # the English dictionary that the quickstart trains on
instruction_packages=(dict-wn)             # the one that its questions and answers are made of
test_packages=(libgtest-dev iproute2)      # iproute2: two hosts made of network namespaces

say() { printf '\n== %s\n' "$*"; }
stop() { printf 'error: %s\n' "$*" >&2; exit 1; }

# install_packages NAME...: installs the Debian packages that are missing, after saying so.
install_packages() {
  local missing=() name
  command -v dpkg-query >/dev/null ||
    stop "this is no Debian (no dpkg-query); install what these packages hold, then run cmake yourself (README.md): $*"
  for name in "$@"; do
    [[ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  local as_root=()
  if [[ $(id -u) != 0 ]]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      stop "these Debian packages are missing, and installing them needs root. Run, then start again:
  apt-get install --no-install-recommends ${missing[*]}"
    fi
  fi
  say "installing Debian packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq || echo "warning: apt-get update failed; trying with the lists at hand" >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >build/apt.log 2>&1 ||
    { tail -n 20 build/apt.log >&2; stop "apt-get could not install: ${missing[*]} (whole log: build/apt.log)"; }
}

# Parallel compilations: one a core, and 1.5 GB of memory for each.
build_jobs() {
  local cores memory_kb
  cores=$(nproc)
  memory_kb=$(awk '/MemAvailable/ {print $2}' /proc/meminfo)
  local by_memory=$((memory_kb / 1500000))
  ((by_memory < 1)) && by_memory=1
  echo $((cores < by_memory ? cores : by_memory))
}

# configure PRESET [cmake options]: uses ccache where it is installed; says what of CUDA was found.
configure() {
  local preset=$1 launcher=()
  shift
  command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
  cmake --preset "$preset" "${launcher[@]}" "$@" >"build/configure-$preset.log" 2>&1 ||
    { tail -n 20 "build/configure-$preset.log" >&2; stop "cmake --preset $preset failed (build/configure-$preset.log)"; }
  sed -n 's/^-- \(CUDA: \)/\1/p' "build/configure-$preset.log"
}

# fetch_cudnn_frontend FOLDER: the headers through which Osprey speaks to cuDNN, from the PyPI wheel of that name, as
# FOLDER/include. Without pip or a network the build does without them, and its own kernel computes all attention.
fetch_cudnn_frontend() {
  local folder=$1
  [[ -f $folder/include/cudnn_frontend.h ]] && return 0
  rm -rf "$folder" && mkdir -p "$folder"
  if python3 -m pip download --quiet --no-deps --dest "$folder" nvidia-cudnn-frontend >build/cudnn-frontend.log 2>&1 &&
    python3 - "$folder" >>build/cudnn-frontend.log 2>&1 <<'END'
import glob, os, sys, zipfile
folder = sys.argv[1]
for wheel in glob.glob(folder + "/*.whl"):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(folder, [n for n in z.namelist() if n.startswith("include/") or "dist-info/licenses/" in n])
    os.remove(wheel)
END
  then return 0; fi
  rm -rf "$folder"
  echo "no headers of cudnn-frontend (pip cannot fetch nvidia-cudnn-frontend; build/cudnn-frontend.log says why)"
}

# Is there a compiler for GPUs? Where cuda.cmake looks.
has_nvcc() { [[ -n ${CUDACXX:-} || -x /usr/local/cuda/bin/nvcc ]] || command -v nvcc >/dev/null; }

# compile PRESET [targets]: quiet unless it fails.
compile() {
  local preset=$1
  shift
  local targets=()
  (($#)) && targets=(--target "$@")
  cmake --build "build/$preset" -j "$(build_jobs)" "${targets[@]}" >"build/compile-$preset.log" 2>&1 ||
    { grep -E -A 12 'error:|FAILED:|undefined reference' "build/compile-$preset.log" | head -n 60 >&2
      stop "the build failed (whole log: build/compile-$preset.log)"; }
}

# Open MPI as these scripts use it: as root in a container, with more ranks than cores, on one host without
# ptrace rights (which the single-copy path of shared memory needs).
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_btl_base_warn_component_unused=0

# on_ranks N COMMAND...: runs on N ranks of this machine. Unbound ranks share the cores evenly as threads.
on_ranks() {
  local ranks=$1
  shift
  mpirun -np "$ranks" --bind-to none "$@"
}

# newest_checkpoint RUN: the newest complete checkpoint, or nothing. One that is half written has a dot in its name.
newest_checkpoint() {
  local one newest=
  for one in "$1"/checkpoints/step-*; do
    if [[ ${one##*/} != *.* && -f $one/manifest.json ]]; then newest=$one; fi
  done
  echo "$newest"
}
