#!/usr/bin/env bash
# Fails if a module that the programs are linked with has a licence that Apache-2.0 cannot carry. $1 is go-licenses. It reads the
# text of every package, so what it found well is kept; a version of a module never changes.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/answers.sh
allowed=Apache-2.0,MIT,BSD-2-Clause,BSD-3-Clause,ISC,MPL-2.0
linked=$(go list -deps -f '{{with .Module}}{{if not .Main}}{{.}}{{end}}{{end}}' ./cmd/... | sort -u)
key=$({ cat "$1" LICENSE; echo "$allowed $linked"; } | sha256sum | cut -d' ' -f1)
if known "$key"; then
  echo "The licences of these $(wc -l <<<"$linked") modules were found well before."
  exit
fi
# GOROOT tells it which packages are the standard library's. What it warns of is assembly, which has no imports.
GOROOT=$(go env GOROOT) "$1" check ./cmd/... --allowed_licenses="$allowed" 2>&1 | { grep -v -e 'non-Go code' -e '\.s$' || true; }
remember "$key"
