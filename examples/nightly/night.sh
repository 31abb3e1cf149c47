# One night: a snapshot, the list of what changed since the last night that was backed up, the backup, and the removal of what
# nobody needs any more. Whatever goes wrong, the next night goes on from the last one that is complete.
set -eu
cd "$(dirname "$0")"
name=night-$(date -u +%Y%m%d-%H%M%S)

# What tomorrow has to know is on the ChangedBlockRange of the last complete night.
last=$(kubectl get changedblockrange -l nightly=complete --sort-by=.metadata.creationTimestamp -o name | tail -n 1)
of_last() { kubectl get "$last" -o jsonpath="{$1}"; }
chain=$name number=1 base=
if [ -n "$last" ] && [ "$(of_last .metadata.annotations.number)" -lt "$NIGHTS_PER_FULL" ]; then
  chain=$(of_last .metadata.annotations.chain)
  number=$(($(of_last .metadata.annotations.number) + 1))
  base=$(of_last .status.toSnapshotHandle)
fi
echo "$name: number $number of chain $chain, base ${base:-none}"

render() {
  sed -e "s|@NAME@|$name|g" -e "s|@CHAIN@|$chain|g" -e "s|@NUMBER@|$number|g" -e "s|@KEEP_CHAINS@|$KEEP_CHAINS|g" "$1" |
    if [ -n "$base" ]; then sed -e "s|@BASE@|$base|g"; else sed -e '/@BASE@/d'; fi
}
render snapshot.yaml | kubectl create -f -
kubectl wait --for=jsonpath='{.status.readyToUse}'=true "volumesnapshot/$name" --timeout=10m
render list.yaml | kubectl create -f -
render backup.yaml | kubectl create -f -
kubectl wait --for=condition=Complete "job/$name" --timeout=6h
kubectl label changedblockrange "$name" nightly=complete --overwrite

# Tomorrow's base is tonight's snapshot: all that earlier nights have left in the cluster can go.
for kind in job changedblockrange volumesnapshot; do
  kubectl delete "$kind" -l "nightly,nightly-name!=$name" --wait=false
done
