{{/* Names, labels and images. */}}

{{- define "inferq.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "inferq" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-inferq" .Release.Name -}}
{{- end -}}
{{- end }}

{{/* What all pods of the release have, and no others. */}}
{{- define "inferq.releaseLabels" -}}
app.kubernetes.io/name: inferq
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What one service's pods have: (root, component). */}}
{{- define "inferq.selectorLabels" -}}
{{- $root := index . 0 -}}
{{- include "inferq.releaseLabels" $root }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* What one model's pods have: (root, worker). */}}
{{- define "inferq.modelLabels" -}}
{{- include "inferq.selectorLabels" (list (index . 0) "worker") }}
inferq/model: {{ (index . 1).key }}
{{- end }}

{{/* What one revision's pods have: (root, worker). */}}
{{- define "inferq.workerLabels" -}}
{{- include "inferq.modelLabels" . }}
inferq/revision: {{ (index . 1).revision }}
{{- end }}

{{/* Labels of objects: (root, component). */}}
{{- define "inferq.labels" -}}
{{- $root := index . 0 -}}
{{- include "inferq.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* An image: (root, repository, tag). */}}
{{- define "inferq.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- $tag := index . 2 | default $image.tag | default $root.Chart.AppVersion -}}
{{- printf "%s/%s:%s" $image.registry (get $image.repositories (index . 1)) $tag -}}
{{- end }}

{{- define "inferq.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* A model's name as a token of subjects and consumer names, as schemas/src/subject.rs escapes it. */}}
{{- define "inferq.token" -}}
{{- range regexFindAll "." . -1 -}}
{{- if regexMatch "^[A-Za-z0-9_-]$" . }}{{ . }}{{ else }}={{ printf "% X" . | replace " " "=" }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "inferq.natsNamespace" -}}
{{- .Values.nats.namespace | default .Release.Namespace -}}
{{- end }}

{{- define "inferq.monitoringEndpoint" -}}
{{- .Values.nats.monitoring.endpoint | default (printf "nats-headless.%s.svc:8222" (include "inferq.natsNamespace" .)) -}}
{{- end }}
