# commit.sh VOLUME NIGHT CHAIN KEEP_CHAINS puts the list beside the image that it belongs to, and then removes the volume's chains that
# are too many.
set -eu
volume=$1 name=$2 chain=$3 keep=$4
cd "/backups/$volume"
d='[0-9]'
nights="night-$volume-$d$d$d$d$d$d$d$d-$d$d$d$d$d$d"

# The list comes last: a backup that has its list is whole. It belongs to the chain, or backup.yaml's check had refused it.
ls "$chain/$name.img"
cp /list/changed-blocks.cbl "$chain/.$name.cbl"
sync
mv "$chain/.$name.cbl" "$chain/$name.cbl"
sync

# The names sort by time. Tonight's chain is one of those to keep, and others count only if their full backup is whole: a night that
# failed must not cost a good chain.
for other in $nights; do
  if [ "$other" != "$chain" ] && [ -e "$other/$other.cbl" ]; then echo "$other"; fi
done | sort -r | tail -n "+$keep" | while read -r old; do
  echo "removing $old"
  # Without this list it counts no more, should the rest be interrupted. Whatever cannot be removed, tonight's backup is whole.
  { rm "$old/$old.cbl" && sync && rm -r "$old"; } || echo "$old stays" >&2
done
