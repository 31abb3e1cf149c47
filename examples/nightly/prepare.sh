# prepare.sh VOLUME NIGHT CHAIN BASE makes the folder of a volume ready for a night's backup: whatever its nights have left there that
# did not count is removed. BASE is the night that this one follows in its chain, empty for a full backup.
set -eu
volume=$1 name=$2 chain=$3 base=$4
mkdir -p "/backups/$volume"
cd "/backups/$volume"
d='[0-9]'
nights="night-$volume-$d$d$d$d$d$d$d$d-$d$d$d$d$d$d"

# Without a whole full backup nothing of a chain can be restored, and it would fill the volume for good.
for other in $nights; do
  if [ "$other" != "$chain" ] && [ -d "$other" ] && [ ! -e "$other/$other.cbl" ]; then
    echo "removing $other, which has no full backup"
    rm -r "$other" || echo "$other stays" >&2
  fi
done

if [ -z "$base" ]; then
  mkdir -p "$chain"
else
  for needed in "$chain/$chain" "$chain/$base"; do
    if [ ! -e "$needed.cbl" ] || [ ! -e "$needed.img" ]; then
      echo "$needed is not there any more, on which this increment is based." \
        "After 'kubectl delete changedblockrange -l nightly-volume=$volume' the next night is a full backup" >&2
      exit 1
    fi
  done
fi
cd "$chain"

# The chain must end at the base: what a night behind it has committed is not between the base and tonight. What tonight's own
# backup has left stays, because it goes on from there in another pod.
remove_behind_base() {
  for file in "$@"; do
    # A volume's name may have dots, so the time ends at the first one behind it.
    time=${file#*"night-$volume-"}
    night=night-$volume-${time%%.*}
    if [ -e "$file" ] && [ "$night" != "$name" ] && expr "$night" \> "$base" >/dev/null; then
      echo "removing $chain/$file, which is of no complete night"
      rm "$file"
    fi
  done
}
# An image without its list is no backup; a list without its image would be a bad one. So the lists go first.
remove_behind_base $nights.cbl
sync
remove_behind_base $nights.* .$nights.*
