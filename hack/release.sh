#!/usr/bin/env bash
# Pushes the images of a release, for amd64 and arm64, with their bills of materials, and writes to dist/ what installs them:
# install.yaml, let-go.sh, which is run before that is removed, the chart, the kubectl plugin and its krew manifest. `make
# release-manifests` calls it with ko's flags.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VERSION:?}" "${KO_DOCKER_REPO:?}" "${BIN:?}" "${KUBECTL:?}"
export KO_DOCKER_REPO

# Charts and krew want v1.2.3 or 1.2.3; what lies between two releases gets a number that sorts below all of them.
semver=${VERSION#v}
[[ $semver =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]] || semver=0.0.0-dev.$semver

# Nobody who asks for the latest release is given one that precedes it. A hyphen in what describes the build, behind the +, means nothing.
tags=${VERSION//+/_}
[[ ${semver%%+*} == *-* ]] || tags+=,latest

rm -rf dist
mkdir -p dist "$BIN/.release"

# `make` has written the kustomization with the version in its labels.
"$KUBECTL" kustomize "$BIN/.manifests" |
  "$BIN/ko" resolve "$@" --platform="${PLATFORMS:-linux/amd64,linux/arm64}" --tags="$tags" --sbom=spdx -f - > dist/install.yaml
# Not ko's own list, which has those of each platform, too.
grep -oE '[^[:space:]"=]+@sha256:[0-9a-f]+' dist/install.yaml | sort -u > dist/images.txt

# The plugin's image, for pods of backups; no manifest names it.
"$BIN/ko" build "$@" --platform="${PLATFORMS:-linux/amd64,linux/arm64}" --tags="$tags" --sbom=spdx ./cmd/kubectl-cbr >> dist/images.txt

image() { grep -E "/(cmd/)?$1(-[0-9a-f]+)?(:[^@]*)?@" dist/images.txt | head -n1; }
controller=$(image controller)
populator=$(image populator)

# The chart names the images by digest.
rm -rf "$BIN/.release/chart"
cp -r charts/cbt-populator "$BIN/.release/chart"
sed -i -e "s|^  controller: \"\"|  controller: \"$controller\"|" -e "s|^  populator: \"\"|  populator: \"$populator\"|" "$BIN/.release/chart/values.yaml"
"$BIN/helm" package "$BIN/.release/chart" --version "$semver" --app-version "$VERSION" --destination dist > /dev/null

cp hack/let-go.sh dist/

# The plugin, for those who have kubectl: one archive a platform, and the manifest that krew installs them by.
epoch=$(git log -1 --format=%ct 2>/dev/null || echo 0)
cp config/krew/cbr.yaml dist/cbr.yaml
sed -i "s|{{VERSION}}|v$semver|g" dist/cbr.yaml
for platform in ${PLUGIN_PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64}; do
  os=${platform%/*} arch=${platform#*/}
  CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -buildvcs=auto -ldflags='-s -w' -o "$BIN/.release/$os-$arch/kubectl-cbr" ./cmd/kubectl-cbr
  archive=kubectl-cbr_${os}_${arch}.tar.gz
  # The same bytes from the same commit: no times and owners of this machine.
  tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -cf - LICENSE -C "$PWD/cmd/kubectl-cbr" kubectl_complete-cbr -C "$BIN/.release/$os-$arch" kubectl-cbr | gzip -n > "dist/$archive"
  sed -i "s|{{SHA256_${os}_${arch}}}|$(sha256sum "dist/$archive" | cut -d' ' -f1)|" dist/cbr.yaml
done

(cd dist && sha256sum -- * > SHA256SUMS)
printf '%s\n' '' "Release $VERSION is in dist/. Try it:" '  kubectl apply --server-side -f dist/install.yaml'
