#!/usr/bin/env bash
# Runs the built wheel on an emulated aarch64, with the aarch64 wheels of its dependencies, and compares its answers with
# the bundle's golden ones and with this machine's. Figures: docs/aarch64.md.
#   bash tests/aarch64.sh DIST_FOLDER BUNDLE [PICTURE ...]
# Needs Debian or a relative (apt-get, dpkg-deb), qemu-user-static, the package index and 1 GB; changes nothing of the system.
# WORK: a folder to keep and use again (default: a temporary one). CPUS: models that `qemu-aarch64-static -cpu help` lists.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
constraints=$here/../constraints.txt
dist=$(cd "$1" && pwd) bundle=$(cd "$2" && pwd)
shift 2
pictures=()
for picture in "$@"; do pictures+=("$(realpath "$picture")"); done
if [ -n "${WORK:-}" ]; then
    mkdir -p "$WORK" && work=$(cd "$WORK" && pwd)
else
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
fi
root=$work/root site=$work/site

# An aarch64 Python, unpacked, not installed: apt and dpkg get a state of their own, the system's stays as it is.
if [ ! -e "$root/usr/bin/python3" ]; then
    mkdir -p "$work"/apt/{lists/partial,cache/archives/partial} "$root"
    : > "$work/apt/status"
    cat > "$work/apt/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State "$work/apt";
Dir::State::lists "$work/apt/lists";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
CONF
    APT_CONFIG=$work/apt/apt.conf apt-get -qq update
    APT_CONFIG=$work/apt/apt.conf apt-get -qq install -y --download-only --no-install-recommends python3 libstdc++6 > "$work/apt/log"
    for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi

# What Python takes for its own program, and starts again for its worker processes: the host cannot run an aarch64 file.
# -L: absolute paths are looked up under $root first, so that its /proc/cpuinfo stands for the host's.
mkdir -p "$work/bin"
cat > "$work/bin/python3" <<WRAPPER
#!/bin/sh
exec qemu-aarch64-static -cpu "\$EMULATED_CPU" -L "$root" -0 "$work/bin/python3" "$root/usr/bin/python3" "\$@"
WRAPPER
chmod +x "$work/bin/python3"

emulated() {
    local cpu=$1 && shift
    EMULATED_CPU=$cpu PYTHONHOME=$root/usr PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
        OPENBLAS_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1 "$work/bin/python3" "$@"
}

# ONNX Runtime's cpuinfo library crashes on import where /proc/cpuinfo is that of an x86 host, which qemu passes through.
describe() {
    local part
    case $1 in
        cortex-a57) part=0xd07 ;;
        cortex-a76) part=0xd0b ;;
        *) part=0xd40 ;;
    esac
    mkdir -p "$root/proc"
    for core in 0 1; do
        printf 'processor\t: %d\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\nCPU revision\t: 0\n\n' \
            "$core" "$part"
    done > "$root/proc/cpuinfo"
}

read -ra cpus <<< "${CPUS:-cortex-a57 cortex-a76 max}"
describe "${cpus[0]}"
version=$(emulated "${cpus[0]}" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
wheels=("$dist"/pocketlens-*.whl)
platforms=()
for tag in manylinux_2_17 manylinux2014 manylinux_2_26 manylinux_2_27 manylinux_2_28 manylinux_2_34; do
    platforms+=(--platform "${tag}_aarch64")
done
[ -e "$site/pocketlens" ] || "${PYTHON:-python3}" -m pip install -q --target "$site" "${platforms[@]}" \
    --python-version "$version" --implementation cp --only-binary=:all: --no-compile -c "$constraints" "${wheels[@]}"
[ -e "$work/venv" ] || "${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q -c "$constraints" "${wheels[@]}"

cd "$work"   # away from the source tree: only the wheel can be imported
OMP_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" "$here/aarch64/answers.py" "$bundle" host.npz "${pictures[@]}"
found=()
for cpu in "${cpus[@]}"; do
    describe "$cpu"
    echo "== $cpu: $(emulated "$cpu" -c 'import platform; print(platform.machine(), "Python", platform.python_version())')"
    emulated "$cpu" -m pocketlens verify "$bundle"
    emulated "$cpu" "$here/aarch64/answers.py" "$bundle" "$cpu.npz" "${pictures[@]}"
    found+=("$cpu=$cpu.npz")
done
"$work/venv/bin/python" "$here/aarch64/compare.py" "$bundle" host.npz "${found[@]}"
echo "aarch64 ok"
