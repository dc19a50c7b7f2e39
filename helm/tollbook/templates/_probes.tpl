{{/* Liveness asks of this process only: a database that is away must not restart the fleet. Readiness asks of the rest. */}}
{{- define "tollbook.probes" -}}
# Time for the database's migration at start.
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- if .Values.preStopSeconds }}
lifecycle:
  preStop:
    exec: {command: [sleep, {{ .Values.preStopSeconds | quote }}]}
{{- end }}
{{- end }}
