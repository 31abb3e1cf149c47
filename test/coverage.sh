#!/usr/bin/env bash
# Reads the output of `go test -cover` and fails if a package fell below its floor in coverage.txt (percent of statements,
# package). A floor is raised by hand when the package has risen for good, and never lowered.
set -euo pipefail
floors=$(dirname "$0")/coverage.txt
status=0
declare -A got
while read -r line; do
  echo "$line"
  [[ $line =~ ^(FAIL|---\ FAIL) ]] && status=1
  if [[ $line =~ cbt-populator/cbt-populator/([^[:space:]]+).*coverage:\ ([0-9]+)\.[0-9]%\ of ]]; then
    got[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
  fi
done
while read -r floor package; do
  [[ -z $package || $floor == \#* ]] && continue
  have=${got[$package]:-0}
  if ((have < floor)); then
    echo "$package: $have % of its statements are covered, $floor % were" >&2
    status=1
  fi
done < "$floors"
for package in "${!got[@]}"; do
  grep -q " $package\$" "$floors" || { echo "$package: $((got[$package])) % covered, no floor in $floors" >&2; status=1; }
done
exit $status
