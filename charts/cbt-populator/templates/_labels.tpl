{{- define "cbt-populator.selector" -}}
app.kubernetes.io/name: cbt-populator
app.kubernetes.io/component: controller
{{- end }}

{{- define "cbt-populator.release" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /*
The configuration file: that of the kustomize installation, with the values' fields laid over it. Resources are replaced as a
whole, as docs/configuration.md has it: a request of the values does not meet a limit of the file.
*/ -}}
{{- define "cbt-populator.configuration" -}}
{{- $file := .Files.Get "files/controller.yaml" | fromYaml }}
{{- $given := default dict .Values.configuration.populator }}
{{- if hasKey $given "resources" }}{{ $_ := unset $file.populator "resources" }}{{ end }}
{{- if .Values.images.pullSecrets }}{{ $_ := set $file.populator "imagePullSecrets" .Values.images.pullSecrets }}{{ end }}
{{- mergeOverwrite $file (deepCopy .Values.configuration) | toYaml }}
{{- end }}
