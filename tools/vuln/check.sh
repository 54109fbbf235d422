#!/usr/bin/env bash
# Reports the known vulnerabilities that the code reaches, and fails if there are any.
# The database is golang.org/x/vulndb as tools/vuln/go.mod pins it (the date is in its
# version), read through the Go module proxy. Tools and database are kept in CACHE, keyed
# by go.mod and go.sum.
#
#   tools/vuln/check.sh CACHE [PACKAGE...]
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=$1
shift
key=$(cat tools/vuln/go.mod tools/vuln/go.sum | sha256sum | cut -c1-16)
kept="$cache/tools/vuln-$key-$(go env GOOS)-$(go env GOARCH)"
if [ ! -d "$kept" ]; then
  echo "build govulncheck and its database (kept as $kept)"
  part="$kept.part.$$"
  trap 'rm -rf "$part"' EXIT
  mkdir -p "$part"
  go build -C tools/vuln -trimpath -o "$part/" golang.org/x/vuln/cmd/govulncheck golang.org/x/vulndb/cmd/indexdb
  "$part/indexdb" -vulns "$(go -C tools/vuln list -m -f '{{.Dir}}' golang.org/x/vulndb)/data/osv" -out "$part/db"
  mv "$part" "$kept"
fi
"$kept/govulncheck" -db "file://$kept/db" -test "${@:-./...}"
