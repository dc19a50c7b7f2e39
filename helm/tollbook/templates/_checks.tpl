{{/* What the schema cannot say: values that do not go together. Each message says why, and what to do. */}}
{{- define "tollbook.checks" -}}
{{- $sqlite := eq .Values.database.type "sqlite" }}
{{- with .Values.secret }}
{{- if and .existingSecret (or .adminPassword .databaseUrl .openaiApiKey .keyEncryptionKey) }}
{{- fail "secret.existingSecret is set, so the other values under `secret` would be ignored: remove them" }}
{{- end }}
{{- if and $sqlite .databaseUrl }}
{{- fail "secret.databaseUrl is set but database.type is sqlite: set database.type=postgresql" }}
{{- end }}
{{- if not (or .existingSecret .adminPassword) }}
{{- fail "the first admin needs a password: set secret.existingSecret or secret.adminPassword" }}
{{- end }}
{{- if not (or $sqlite .existingSecret .databaseUrl) }}
{{- fail "database.type=postgresql needs its URL: set secret.existingSecret or secret.databaseUrl" }}
{{- end }}
{{- end }}
{{- with .Values.signingKey }}
{{- if and .inDatabase .existingSecret }}
{{- fail "signingKey.inDatabase and signingKey.existingSecret exclude each other: choose one" }}
{{- end }}
{{- if and .inDatabase (not (or $.Values.secret.existingSecret $.Values.secret.keyEncryptionKey)) }}
{{- fail "signingKey.inDatabase needs a key to encrypt with: set secret.existingSecret or secret.keyEncryptionKey" }}
{{- end }}
{{- end }}
{{- if gt (int .Values.replicaCount) 1 }}
{{- if $sqlite }}
{{- fail "replicaCount > 1 needs database.type=postgresql: with SQLite each pod would have users and a ledger of its own" }}
{{- end }}
{{- if not (or .Values.signingKey.inDatabase .Values.signingKey.existingSecret) }}
{{- fail "replicaCount > 1 needs signingKey.inDatabase or signingKey.existingSecret: with a signing key of its own, a pod refuses the tokens of the others" }}
{{- end }}
{{- end }}
{{- end }}
