{{- define "tollbook.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* A release called after the chart does not get the name twice. */}}
{{- define "tollbook.fullname" -}}
{{- $name := include "tollbook.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What the Service and the Deployment find the pods by. */}}
{{- define "tollbook.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tollbook.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tollbook.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "tollbook.labels" -}}
{{ include "tollbook.selectorLabels" . }}
{{ include "tollbook.commonLabels" . }}
{{- end }}

{{- define "tollbook.image" -}}
{{- $reference := printf ":%s" (default .Chart.AppVersion .Values.image.tag) }}
{{- if .Values.image.digest }}{{ $reference = printf "@%s" .Values.image.digest }}{{ end }}
{{- .Values.image.repository }}{{ $reference }}
{{- end }}

{{- define "tollbook.serviceAccountName" -}}
{{- default (ternary (include "tollbook.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "tollbook.secretName" -}}
{{- default (include "tollbook.fullname" .) .Values.secret.existingSecret }}
{{- end }}
