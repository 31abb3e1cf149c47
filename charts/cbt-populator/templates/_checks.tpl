{{- /*
The port of an address in the configuration file (dict "root" . "field" NAME), or nothing where only the pod itself gets an answer.
*/ -}}
{{- define "cbt-populator.port" -}}
{{- $address := dig .field "bindAddress" "" (include "cbt-populator.configuration" .root | fromYaml) }}
{{- if regexMatch `^(0\.0\.0\.0|\[::\])?:[1-9][0-9]*$` $address }}{{ regexFind "[0-9]+$" $address }}{{ end }}
{{- end }}

{{- /*
Fails for what the controller would take from its file and the rest of the release does not fit, and for values that alone do nothing.
*/ -}}
{{- define "cbt-populator.check" -}}
{{- $file := include "cbt-populator.configuration" . | fromYaml }}
{{- $probes := include "cbt-populator.port" (dict "root" . "field" "healthProbe") }}
{{- $metrics := include "cbt-populator.port" (dict "root" . "field" "metrics") }}
{{- if not $probes }}
{{- fail (printf "configuration.healthProbe.bindAddress is %q, where the kubelet gets no answer and restarts the controller again and again: leave it out, or say \":PORT\"" $file.healthProbe.bindAddress) }}
{{- end }}
{{- if and .Values.monitoring.enabled (not $metrics) }}
{{- fail (printf "configuration.metrics.bindAddress is %q, where Prometheus gets no answer: leave it out, or say \":PORT\", or set monitoring.enabled to false" $file.metrics.bindAddress) }}
{{- end }}
{{- if eq $probes $metrics }}
{{- fail (printf "configuration.healthProbe.bindAddress and configuration.metrics.bindAddress both have the port %s: choose another one for one of them" $probes) }}
{{- end }}
{{- if and (gt (int .Values.replicas) 1) (not (dig "leaderElection" "enabled" true $file)) }}
{{- fail "configuration.leaderElection.enabled is false, and several controllers would fill the same claims: leave it out, or set replicas to 1" }}
{{- end }}
{{- if and .Values.openshift.blockVolumes (not .Values.openshift.enabled) }}
{{- fail "openshift.blockVolumes is true, which adds to what openshift.enabled brings: set that to true as well, or leave both out" }}
{{- end }}
{{- with $file.namespace }}
{{- if ne . $.Release.Namespace }}
{{- fail (printf "configuration.namespace is %q, and all that the controller may use is in the release's namespace %q: leave it out, and install with --namespace %s" . $.Release.Namespace .) }}
{{- end }}
{{- end }}
{{- if $file.populator.image }}
{{- fail "configuration.populator.image would take the place of images.populator: leave it out, and name the image there" }}
{{- end }}
{{- if ne $file.populator.serviceAccountName "cbt-populator-worker" }}
{{- fail (printf "configuration.populator.serviceAccountName is %q, and the release makes the account cbt-populator-worker and grants it what populators need: leave it out" $file.populator.serviceAccountName) }}
{{- end }}
{{- end }}
