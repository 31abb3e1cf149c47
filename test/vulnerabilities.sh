#!/usr/bin/env bash
# Fails if the programs can reach code with a known vulnerability, the standard library's included. $1 is govulncheck. It asks the
# Go vulnerability database of the version that is pinned, so that a commit's answer stays the same; VULNDB=latest asks the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/answers.sh
pinned=$(cd test/cluster/components/vulndb && go list -m -f '{{.Version}}' golang.org/x/vulndb)
database=$(cd test/cluster/components/vulndb && go mod download -json "golang.org/x/vulndb@${VULNDB:-$pinned}")
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\?$/\1/p" <<<"$database"; }
# Releases have the standard library of this Go version; an older one that happens to build here is not what is judged.
toolchain=$(go mod edit -json | sed -n 's/^\t"Toolchain": "\(.*\)",\?$/\1/p')
echo "Known vulnerabilities as of $(field Version), with the standard library of $toolchain."

# The identities of the packages tell their content and that of the compiler.
key=$({ cat "$1"; field Version; echo "$toolchain"; go list -deps -export -f '{{.ImportPath}} {{.BuildID}}' ./cmd/...; } | sha256sum | cut -d' ' -f1)
if known "$key"; then
  echo "The programs were found well before."
  exit
fi
GOVERSION=$toolchain "$1" -db "file://$(field Dir)/data/osv" ./cmd/...
remember "$key"
