{{- define "tollbook.volumeMounts" -}}
- {name: state, mountPath: /var/lib/tollbook}
- {name: tmp, mountPath: /tmp}
{{- if .Values.catalog }}
- {name: catalog, mountPath: /etc/tollbook/catalog, readOnly: true}
{{- end }}
{{- if .Values.signingKey.existingSecret }}
- {name: signing-key, mountPath: /etc/tollbook/keys, readOnly: true}
{{- end }}
{{- end }}

{{- define "tollbook.volumes" -}}
- name: state
  emptyDir: {sizeLimit: {{ .Values.state.sizeLimit }}}
# In memory, because Gunicorn's workers touch a file there to show that they are alive.
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- if .Values.catalog }}
- name: catalog
  configMap: {name: {{ include "tollbook.fullname" . }}-catalog}
{{- end }}
{{- with .Values.signingKey.existingSecret }}
- name: signing-key
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
