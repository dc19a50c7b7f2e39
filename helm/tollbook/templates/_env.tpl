{{/* The container's environment: names as in docs/configuration.md. */}}
{{- define "tollbook.env" -}}
- {name: TOLLBOOK_STATE_DIR, value: /var/lib/tollbook}
- {name: TOLLBOOK_PORT, value: "8000"}
- {name: TOLLBOOK_WORKERS, value: {{ .Values.workers | quote }}}
- {name: TOLLBOOK_GRACEFUL_TIMEOUT_SECONDS, value: {{ .Values.gracefulTimeoutSeconds | quote }}}
- {name: TOLLBOOK_LOG_FORMAT, value: {{ .Values.logging.format }}}
- {name: TOLLBOOK_LOG_LEVEL, value: {{ .Values.logging.level }}}
- {name: TOLLBOOK_METRICS_ENABLED, value: {{ .Values.metrics.enabled | quote }}}
- {name: TOLLBOOK_TRACING_ENABLED, value: {{ .Values.tracing.enabled | quote }}}
{{- with .Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .Values.catalog }}
- {name: TOLLBOOK_CATALOG, value: /etc/tollbook/catalog/tollbook.yaml}
{{- end }}
{{- with .Values.upstream.baseUrl }}
- {name: OPENAI_BASE_URL, value: {{ . | quote }}}
{{- end }}
{{- if .Values.signingKey.existingSecret }}
- {name: TOLLBOOK_AUTH_KEY_DIR, value: /etc/tollbook/keys}
{{- end }}
- {name: TOLLBOOK_ADMIN_USERNAME, value: {{ .Values.admin.username | quote }}}
{{ include "tollbook.secretEnv" (list . "TOLLBOOK_ADMIN_PASSWORD" false) }}
{{- if eq .Values.database.type "postgresql" }}
{{ include "tollbook.secretEnv" (list . "TOLLBOOK_DATABASE_URL" false) }}
{{- end }}
{{- if .Values.signingKey.inDatabase }}
{{ include "tollbook.secretEnv" (list . "TOLLBOOK_AUTH_KEY_ENCRYPTION_KEY" false) }}
{{- end }}
{{ include "tollbook.secretEnv" (list . "OPENAI_API_KEY" true) }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A variable out of the Secret: (list root name optional). */}}
{{- define "tollbook.secretEnv" -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef:
      name: {{ include "tollbook.secretName" (index . 0) }}
      key: {{ index . 1 }}
      optional: {{ index . 2 }}
{{- end }}
