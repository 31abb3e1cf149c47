#!/usr/bin/env bash
# Restores a night's backup of a volume to the claim restored, ALL OF WHICH IS WIPED FIRST: restore.sh VOLUME [NIGHT]. Without a
# night it is the last one. It needs the claim with the backups and nothing else that nights have left in the cluster.
set -euo pipefail
cd "$(dirname "$0")"
volume=${1:?restore.sh VOLUME [NIGHT]} wanted=${2:-latest}
trap '[ $? -eq 0 ] || echo "NOT RESTORED. What failed is above" >&2' EXIT
await() {
  # The first condition says that it is about to end; a Job that fails would not become Complete for the whole time.
  kubectl wait --for=jsonpath='{.status.conditions[0].type}' "job/$1" --timeout="${TIMEOUT:-180s}" >/dev/null &&
    kubectl wait --for=condition=Complete "job/$1" --timeout=60s || { kubectl logs "job/$1" --all-containers --ignore-errors; return 1; }
}

# The Jobs of an earlier restore are complete already.
kubectl delete job -l restore=chain --cascade=foreground
../apply.sh chain.yaml VOLUME="$volume" NIGHT="$wanted"
await find-chain
backups=$(kubectl logs job/find-chain)

# Nothing is wiped before it is known that the chain is whole.
lists= check=cat
for backup in $backups; do
  if [ -n "$lists" ]; then check=union; fi # which wants more lists than one
  lists="$lists, /backups/$backup.cbl"
done
../apply.sh ../restore/check.yaml CHECK="$check$lists"
await check-chain
../apply.sh ../restore/wipe.yaml
await wipe
number=0
for backup in $backups; do
  number=$((number + 1))
  ../apply.sh ../restore/restore.yaml NAME="$number" BACKUP="$backup"
  await "restore-$number"
done
echo "restored: ${backups##*/}"
