#!/usr/bin/env bash
# Installs what tests need of Debian's packages and is missing here, if it may: as root, where there is apt-get, and
# unless NO_APT=1 forbids it. It says so first. No service of theirs is started. What stays missing is the tests' affair:
# they are skipped and say why, or fail where CI=true.
set -uo pipefail

packages=(redis-server nginx chromium prometheus) # each has a program of its own name
policy=/usr/sbin/policy-rc.d
patience=180 # seconds for each step

missing=()
for package in "${packages[@]}"; do
    PATH="$PATH:/usr/sbin" command -v "$package" >/dev/null || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "${NO_APT:-}" = 1 ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not here, and not installed by this user or with NO_APT=1: ${missing[*]}; the tests that need them say so" >&2
    exit 0
fi

echo "installing with apt-get for the tests: ${missing[*]} (NO_APT=1 forbids it)" >&2
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
install() {
    timeout "$patience" apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1
}
install || { timeout "$patience" apt-get update -qq >/dev/null 2>&1 && install; } ||
    echo "apt-get could not install ${missing[*]}; the tests that need them say so" >&2
exit 0
