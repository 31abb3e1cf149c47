#!/usr/bin/env bash
# Applies a manifest after replacing its placeholders, such as ${DAY}: apply.sh FILE [NAME=VALUE...]. Those of the images
# come from the environment.
set -euo pipefail
text=$(<"$1")
for pair in CBR_IMAGE="${CBR_IMAGE:-}" POPULATOR_IMAGE="${POPULATOR_IMAGE:-}" KUBECTL_IMAGE="${KUBECTL_IMAGE:-}" "${@:2}"; do
  name=${pair%%=*} value=${pair#*=}
  if [[ -z $value && $text == *"\${$name}"* ]]; then
    echo "$1 needs $name: see the README of the examples" >&2
    exit 1
  fi
  text=${text//"\${$name}"/"$value"}
done
kubectl apply -f - <<<"$text"
