# One night of the volume $VOLUME: a snapshot, the list of what changed since the last night that was backed up, the backup, and the
# removal of what nobody needs any more. Whatever goes wrong, the next night goes on from the last one that is complete.
#
# Every question and every object names the volume, so that others are backed up beside it, in this namespace and to the same claim.
#
# sh ends here when kubectl fails, but not if that is inside a pipeline, a condition or an argument. So every answer of kubectl is
# put into a variable first: an answer that did not come must not be taken for an empty one.
set -eu
cd "$(dirname "$0")"

fail() {
  echo "$*" >&2
  exit 1
}

# ended JOB waits until a Job has ended, which its activeDeadlineSeconds bounds, or cannot begin. It prints Complete, Failed, or why its
# pod gets no volumes.
ended() {
  since=$(date +%s)
  while :; do
    # The first condition comes shortly before that of the end.
    kubectl wait --for=jsonpath='{.status.conditions[0].type}' "job/$1" --timeout=1m >/dev/null 2>&1 || true
    conditions=$(kubectl get job "$1" -o jsonpath='{.status.conditions[*].type}') || return
    case " $conditions " in
      *' Complete '*) echo Complete && return ;;
      *' Failed '*) echo Failed && return ;;
    esac
    # A pod has a node once all its claims are bound. A list that fails after that is that of another claim.
    nodes=$(kubectl get pod -l "job-name=$1" --field-selector='status.phase!=Failed' -o jsonpath='{.items[*].spec.nodeName}') || return
    if [ -n "$nodes" ]; then
      # Should this pod be evicted, the one that takes its place gets volumes of its own, and as long to do so.
      since=$(date +%s)
    else
      list=$(kubectl get changedblockrange "$1" --ignore-not-found -o jsonpath='{.status.state} {.status.conditions[?(@.type=="Ready")].reason}: {.status.message}') || return
      case $list in
        'Failed '*) printf '%s\n' "there is no list: ${list#Failed }" && return ;;
      esac
      now=$(date +%s)
      if [ $((now - since)) -ge $((MOUNT_MINUTES * 60)) ]; then
        printf '%s\n' "the backup has not got its volumes in $MOUNT_MINUTES minutes. Its list is ${list:-not there}" && return
      fi
    fi
    sleep 1
  done
}

# complete NIGHT makes a night the base of the next one. The Job comes last: until it has its label, the next night looks after it.
complete() {
  kubectl label changedblockrange -l "nightly-volume=$VOLUME,nightly-name=$1" nightly=complete --overwrite
  kubectl label job -l "nightly-volume=$VOLUME,nightly-name=$1" nightly=complete --overwrite
}

[ "$NIGHTS_PER_FULL" -ge 1 ] && [ "$KEEP_CHAINS" -ge 1 ] || fail "NIGHTS_PER_FULL and KEEP_CHAINS are numbers from 1 on"
# A label, and the name of a Job, have at most 63 characters.
name=night-$VOLUME-$(date -u +%Y%m%d-%H%M%S)
[ "${#name}" -le 63 ] || fail "$VOLUME is too long a name: with it a night would be called $name, and 63 characters are allowed"
anew="After 'kubectl delete changedblockrange -l nightly-volume=$VOLUME' the next night is a full backup and begins a new chain"

# Two nights beside each other would write to one chain. The CronJob starts none beside another one, but people might.
runs=$(kubectl get job -l "cronjob=nightly,nightly-volume=$VOLUME" -o jsonpath='{range .items[*]}{.metadata.name} {.status.conditions[*].type}{"\n"}{end}')
others=$(printf '%s\n' "$runs" | grep -v -e "^$JOB " -e Complete -e Failed -e '^$') || true
[ -z "$others" ] || fail "another night is not over: $others"

# A night may be over before its backup: its pod was evicted, or the API server went away. That backup is waited for, and counts if
# it is complete. If not, its pods must be gone before another backup writes to the chain.
unsettled=$(kubectl get job -l "nightly=started,nightly-volume=$VOLUME" -o jsonpath='{.items[*].metadata.name}')
for earlier in $unsettled; do
  echo "waiting for the backup of $earlier" >&2
  result=$(ended "$earlier")
  if [ "$result" = Complete ]; then
    complete "$earlier"
  else
    echo "the backup of $earlier does not count: $result" >&2
    kubectl delete job "$earlier" --cascade=foreground --timeout=10m
  fi
done

# What tonight has to know is on the ChangedBlockRange of the last complete night. The names sort by time.
nights=$(kubectl get changedblockrange -l "nightly=complete,nightly-volume=$VOLUME" -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.annotations.chain} {.metadata.annotations.number}{"\n"}{end}')
read -r last last_chain last_number <<END
$(printf '%s\n' "$nights" | sort | tail -n 1)
END

chain=$name number=1 base= size=
if [ -n "$last" ]; then
  case "$last_chain $last_number" in
    *[!a-z0-9.-]*' '* | *' ' | *' '*[!0-9]*) last_chain= ;;
  esac
  [ -n "$last_chain" ] || fail "$last does not tell its chain and its number. $anew"
  expr "$name" \> "$last" >/dev/null || fail "the clock was put back: $name would come before $last"
  if [ "$last_number" -lt "$NIGHTS_PER_FULL" ]; then
    chain=$last_chain number=$((last_number + 1)) base=$last
    # Named by its snapshot, the base is one of the same volume and driver, or the controller refuses it.
    snapshot=$(kubectl get volumesnapshot "$base" --ignore-not-found -o jsonpath='{.status.readyToUse}{.metadata.deletionTimestamp} {.status.restoreSize}')
    base_size=${snapshot#true }
    [ "$base_size" != "$snapshot" ] || fail "the snapshot of $base is gone, and nobody can tell any more what has changed since then. $anew"
  fi
fi
# None of these values has a character that sed or YAML would take for its own. A full backup has no line for a base.
create() {
  no_base= list=/list/changed-blocks.cbl
  check="union, /backups/$VOLUME/$chain/$base.cbl, $list, --output, cbl, --out, /checked/chain.cbl"
  [ -n "$base" ] || no_base='/fromVolumeSnapshotName:/d' check="verify, $list"
  manifest=$(sed -e "s|@VOLUME@|$VOLUME|g" -e "s|@SIZE@|$size|g" -e "s|@LIST_SIZE@|$LIST_SIZE|g" -e "s|@NAME@|$name|g" -e "s|@CHAIN@|$chain|g" \
    -e "s|@NUMBER@|$number|g" -e "s|@BASE@|$base|g" -e "s|@CHECK@|$check|g" -e "s|@KEEP_CHAINS@|$KEEP_CHAINS|g" -e "$no_base" "$1")
  printf '%s\n' "$manifest" | kubectl create -f -
}
create snapshot.yaml
kubectl wait --for=jsonpath='{.status.readyToUse}'=true "volumesnapshot/$name" --timeout=10m
# The volume that is made from it has its size, which is that of the volume when it was taken.
size=$(kubectl get volumesnapshot "$name" -o jsonpath='{.status.restoreSize}')
case $size in
  '' | 0) fail "the snapshot $name does not tell its size, without which no volume can be made from it. Put the size into backup.yaml, and take this question out" ;;
esac
# The only reason for which a night begins a chain by itself: no increment fits this one any more, whatever anybody does.
if [ -n "$base" ] && [ "$size" != "$base_size" ]; then
  echo "the volume had $base_size at the time of $base and has $size now, so a new chain begins"
  chain=$name number=1 base=
fi
echo "$name: number $number of chain $chain, base ${base:-none}"
create list.yaml
create backup.yaml
result=$(ended "$name")
case $result in
  Complete) ;;
  Failed) fail "the backup failed: kubectl logs job/$name --all-containers" ;;
  *)
    # Left alone, it would wait for its deadline, and the next night for it.
    kubectl delete job "$name" --cascade=foreground --timeout=10m
    fail "$result (kubectl describe changedblockrange $name)"
    ;;
esac
complete "$name"

# Tomorrow's base is tonight's snapshot: all that earlier nights have left in the cluster can go.
for kind in job changedblockrange volumesnapshot; do
  kubectl delete "$kind" -l "nightly,nightly-volume=$VOLUME,nightly-name!=$name" --wait=false
done
