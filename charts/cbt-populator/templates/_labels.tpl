{{- define "cbt-populator.selector" -}}
app.kubernetes.io/name: cbt-populator
app.kubernetes.io/component: controller
{{- end }}

{{- define "cbt-populator.release" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* The configuration file: that of the kustomize installation, with the values' fields laid over it. */ -}}
{{- define "cbt-populator.configuration" -}}
{{- mergeOverwrite (.Files.Get "files/controller.yaml" | fromYaml) (deepCopy .Values.configuration) | toYaml }}
{{- end }}
