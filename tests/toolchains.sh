#!/usr/bin/env bash
# Installs the compilers and the emulator that the device kit's tests need, and the browser of the page tests, where they are missing and can be installed.
# Without them those tests are skipped, or fail where POCKETLENS_REQUIRE_TOOLCHAINS is set.
set -euo pipefail
missing=()
for program in gcc g++ clang aarch64-linux-gnu-gcc qemu-aarch64-static chromium; do
    command -v "$program" > /dev/null || missing+=("$program")
done
# clang may be there without the libraries of its sanitizers
if command -v clang > /dev/null && ! echo 'int main(void) { return 0; }' | clang -x c -fsanitize=address - -o /dev/null 2> /dev/null; then
    missing+=("clang's sanitizers")
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get > /dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "not installed: ${missing[*]}; docs/device-kit.md names the Debian packages" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends gcc g++ libc6-dev clang gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static chromium
apt-get install -qy --no-install-recommends "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
