#!/usr/bin/env bash
# Deletes all ChangedBlockRanges of a cluster and takes everything of this project off its claims, so that nothing hangs when the
# controller is removed afterwards. Claims stay, filled or not; so do volumes that were filled.
#
# While the controller runs, it does the work: populations that run may end, claims that wait or have failed are let go. What is
# held for longer than PATIENCE seconds is given up; without a controller, the finalizers are taken off from here.
#
#   KUBECTL    the kubectl to use; default: kubectl, with the current context
#   PATIENCE   seconds to wait for each of the two steps; default: 60
set -euo pipefail

KUBECTL=${KUBECTL:-kubectl}
PATIENCE=${PATIENCE:-60}
RANGES=changedblockranges.cbt.storage.k8s.io
FINALIZER=cbt.storage.k8s.io/populate-target-protection

# installed prints the kind's definition, if it is there; gone says that it no longer is.
installed() {
  "$KUBECTL" get crd "$RANGES" --ignore-not-found -o name
}
gone() {
  local definition
  definition=$(installed) && [[ -z "$definition" ]]
}

# held_ranges and held_claims print namespace, name and, for claims, the place of the finalizer in the list.
held_ranges() {
  "$KUBECTL" get "$RANGES" --all-namespaces -o go-template='{{range .items}}{{if .metadata.finalizers}}{{.metadata.namespace}} {{.metadata.name}}{{"\n"}}{{end}}{{end}}' || gone
}
held_claims() {
  "$KUBECTL" get persistentvolumeclaims --all-namespaces -o go-template='{{range .items}}{{$m := .metadata}}{{range $i, $f := .metadata.finalizers}}{{if eq $f "'"$FINALIZER"'"}}{{$m.namespace}} {{$m.name}} {{$i}}{{"\n"}}{{end}}{{end}}{{end}}'
}

# await waits until the function $1 prints nothing; it fails when that takes too long. A question without an answer is asked again:
# it does not say that nothing is held.
await() {
  local deadline=$((SECONDS + PATIENCE)) held
  until held=$("$1") && [[ -z "$held" ]]; do
    ((SECONDS < deadline)) || return 1
    sleep 0.5
  done
}

# The definition may go before claims are let go, or has gone already.
definition=$(installed)
if [[ -n "$definition" ]]; then
  "$KUBECTL" delete "$RANGES" --all --all-namespaces --wait=false || gone
fi

if [[ -n "$definition" ]] && ! await held_ranges; then
  held_ranges | while read -r namespace name; do
    echo "Giving up what is populated from ChangedBlockRange $namespace/$name."
    "$KUBECTL" -n "$namespace" patch "$RANGES" "$name" --type=merge -p '{"metadata":{"finalizers":null}}' || true # it may have gone just now
  done
fi

if ! await held_claims; then
  held_claims | while read -r namespace name place; do
    echo "Taking the finalizer off claim $namespace/$name; no controller does."
    "$KUBECTL" -n "$namespace" patch persistentvolumeclaim "$name" --type=json \
      -p "[{\"op\":\"test\",\"path\":\"/metadata/finalizers/$place\",\"value\":\"$FINALIZER\"},{\"op\":\"remove\",\"path\":\"/metadata/finalizers/$place\"}]" || true # as above
  done
  await held_claims || { echo "These claims still carry the finalizer $FINALIZER; run this again:" >&2; held_claims >&2; exit 1; }
fi
