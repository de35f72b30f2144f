{{/* What pods have in common: restricted security, the connection to NATS, probes. */}}

{{- define "inferq.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# Makes mounted Secrets and the model cache readable and writable for that user.
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "inferq.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The Secret with a client's certificates: (root, client). */}}
{{- define "inferq.tlsSecret" -}}
{{- $root := index . 0 -}}
{{- $client := index . 1 -}}
{{- if $root.Values.certManager.enabled -}}
{{- printf "%s-%s-tls" (include "inferq.fullname" $root) $client -}}
{{- else -}}
{{- (get $root.Values.nats.clients $client).tlsSecret | default $root.Values.nats.tls.secret -}}
{{- end -}}
{{- end }}

{{/* The variables of a client's connection: (root, client). */}}
{{- define "inferq.natsEnv" -}}
{{- $root := index . 0 -}}
{{- $settings := get $root.Values.nats.clients (index . 1) -}}
- {name: NATS_URL, value: {{ $root.Values.nats.url | quote }}}
{{- with $settings.credentials }}
{{- if .secret }}
- {name: {{ ternary "NATS_NKEY" "NATS_CREDS" (eq .kind "nkey") }}, value: /etc/nats/credentials/{{ .key }}}
{{- end }}
{{- end }}
{{- if $root.Values.nats.tls.enabled }}
- {name: NATS_CA, value: /etc/nats/tls/ca.crt}
{{- if $root.Values.nats.tls.first }}
- {name: NATS_TLSFIRST, value: "true"}
{{- end }}
{{- if $root.Values.nats.tls.mutual }}
- {name: NATS_CERT, value: /etc/nats/tls/tls.crt}
- {name: NATS_KEY, value: /etc/nats/tls/tls.key}
{{- end }}
{{- end }}
{{- with $settings.inboxPrefix }}
- {name: NATS_INBOX_PREFIX, value: {{ . | quote }}}
{{- end }}
{{- with $settings.jsApiPrefix }}
- {name: NATS_JS_API_PREFIX, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "inferq.natsMounts" -}}
{{- $root := index . 0 -}}
{{- if (get $root.Values.nats.clients (index . 1)).credentials.secret }}
- {name: nats-credentials, mountPath: /etc/nats/credentials, readOnly: true}
{{- end }}
{{- if $root.Values.nats.tls.enabled }}
- {name: nats-tls, mountPath: /etc/nats/tls, readOnly: true}
{{- end }}
{{- end }}

{{/* Whole folders, not subPath: a rotated Secret appears in the running pod. */}}
{{- define "inferq.natsVolumes" -}}
{{- $root := index . 0 -}}
{{- with (get $root.Values.nats.clients (index . 1)).credentials.secret }}
- name: nats-credentials
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if $root.Values.nats.tls.enabled }}
- name: nats-tls
  secret: {secretName: {{ include "inferq.tlsSecret" . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* Liveness never asks NATS: a restart would not bring it back. Neither does the startup probe, so a pod that starts
while NATS is away waits for it; a model that never loads is noticed by the rollout's deadline. */}}
{{- define "inferq.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}
