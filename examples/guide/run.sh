#!/usr/bin/env bash
# The guide, typed for you: 4 KiB of random data at blocks 1, 3, 5, 7, 9 of a 10 MiB volume; a snapshot; blocks 2, 4, 9;
# a snapshot; then three lists of changed blocks, read by a backup pod and compared with what they must be.
#
# It needs a cluster in which cbt-populator is installed, the current kubectl context, and the storage class and snapshot
# class that the manifests beside it name. It works in the namespace cbt-demo, which it makes anew.
set -euo pipefail
cd "$(dirname "$0")"

namespace=cbt-demo
k() { kubectl --namespace "$namespace" "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
timed() {
  local what=$1 start=$SECONDS
  shift
  "$@" >/dev/null || { echo "failed: $what" >&2; k get pvc,volumesnapshot,cbr,pod >&2; k get events --sort-by=.lastTimestamp >&2; exit 1; }
  printf '  %-58s %3d s\n' "$what" "$((SECONDS - start))"
}
write_blocks() {
  k exec writer -- sh -ec 'for block in "$@"; do
    dd if=/dev/urandom of=/dev/source bs=4096 count=1 seek="$block" conv=notrunc,fsync 2>/dev/null; done' sh "$@"
}
# The block numbers of a list in the backup pod's output.
blocks_of() {
  k logs backup | awk -v list="== $1:" '
    index($0, "== ") == 1 { inside = index($0, list) == 1 }
    inside && match($0, /"byte_offset":[0-9]+/) { printf "%s%d", sep, substr($0, RSTART + 14, RLENGTH - 14) / 4096; sep = "," }'
}
expect() {
  local got
  got=$(blocks_of "$1")
  if [ "$got" != "$2" ]; then
    echo "$1 lists the blocks {$got}; it must list {$2}" >&2
    exit 1
  fi
  printf '  %-12s blocks {%s}\n' "$1" "$got"
}

say "A volume, and a pod that writes to it"
kubectl delete namespace "$namespace" --ignore-not-found >/dev/null
kubectl create namespace "$namespace" >/dev/null
k apply -f 1-source.yaml >/dev/null
timed 'writer pod runs' k wait --for=condition=Ready pod/writer --timeout=120s

say "Two snapshots with writes between them"
timed 'wrote blocks 1 3 5 7 9' write_blocks 1 3 5 7 9
k apply -f 2-snapshot-1.yaml >/dev/null
timed 'snapshot-1 is ready' k wait --for=jsonpath='{.status.readyToUse}'=true volumesnapshot/snapshot-1 --timeout=120s
timed 'wrote blocks 2 4 9' write_blocks 2 4 9
k apply -f 3-snapshot-2.yaml >/dev/null
timed 'snapshot-2 is ready' k wait --for=jsonpath='{.status.readyToUse}'=true volumesnapshot/snapshot-2 --timeout=120s

say "Three ChangedBlockRanges and the claims that they fill"
k apply -f 4-changed-blocks.yaml >/dev/null
timed 'claims are Bound' k wait --for=jsonpath='{.status.phase}'=Bound pvc/delta pvc/allocated-1 pvc/allocated-2 --timeout=180s
timed 'ChangedBlockRanges are Ready' k wait --for=condition=Ready cbr --all --timeout=60s

say "A backup pod mounts the lists and prints them"
k apply -f 5-backup-pod.yaml >/dev/null
timed 'backup pod has finished' k wait --for=jsonpath='{.status.phase}'=Succeeded pod/backup --timeout=120s
k logs backup

say "The lists are what they must be"
expect delta 2,4,9
expect allocated-1 1,3,5,7,9
expect allocated-2 1,2,3,4,5,7,9

say "What the cluster shows"
k get pvc,cbr

say "Try next"
cat <<NEXT
  export KUBECONFIG=${KUBECONFIG:-$HOME/.kube/config} PATH="$(dirname "$(command -v kubectl)"):\$PATH"
  kubectl -n $namespace get cbr -o wide
  kubectl -n $namespace describe cbr delta
  kubectl -n $namespace get pvc delta -o yaml
  kubectl explain changedblockrange.spec
  kubectl delete namespace $namespace
NEXT
