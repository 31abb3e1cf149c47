#!/usr/bin/env bash
# Writes the tool of the folder $1 here to the file $2: builds it, or copies what another checkout has built, because linking is most
# of the work where everything is compiled. (`go tool` keeps what it links, too, but compiles everything once more for it.)
set -euo pipefail
cd "$(dirname "$0")/$1"
key=$({ cat go.mod go.sum; go env GOVERSION GOOS GOARCH; } | sha256sum | cut -d' ' -f1)
kept=$(go env GOCACHE)/cbt-tools/$1
if [ ! -e "$kept/$key" ]; then
  mkdir -p "$kept"
  fresh=$(mktemp "$kept/.new.XXXXXX")
  CGO_ENABLED=0 go build -trimpath -o "$fresh" "$(go list -f '{{.ImportPath}}' tool)"
  find "$kept" -type f ! -path "$fresh" -mtime +5 -delete
  mv "$fresh" "$kept/$key"
fi
# Beside its place first: what runs cannot be overwritten.
cp "$kept/$key" "$2.new"
chmod 755 "$2.new"
mv "$2.new" "$2"
