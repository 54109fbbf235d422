#!/usr/bin/env bash
# Builds PACKAGE from the module tools/NAME, which pins its version, and copies it to bin/.
# Binaries are cached in CACHE, keyed by go.mod and go.sum. Consul takes minutes without the cache.
#
#   deploy/tool.sh NAME PACKAGE CACHE
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 package=$2 cache=$3
binary=$(basename "${package%/v2}")
key=$(cat "tools/$name/go.mod" "tools/$name/go.sum" | sha256sum | cut -c1-16)
kept="$cache/tools/$binary-$key-$(go env GOOS)-$(go env GOARCH)"
mkdir -p bin "$cache/tools"
if [ ! -x "$kept" ]; then
  echo "build $binary from tools/$name (kept as $kept)"
  CGO_ENABLED=0 go build -C "tools/$name" -trimpath -ldflags "-s -w" -o "$kept.part" "$package"
  mv "$kept.part" "$kept"
fi
cp "$kept" "bin/$binary"
touch "bin/$binary"
