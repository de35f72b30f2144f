{{/* Which workers there are: the values and the registry put together and checked. Every template of a worker ranges
over "inferq.workers", so nothing is decided twice. It gives, as JSON, for each Deployment:
  name, key, revision, share, settings, model (of the registry), token, lanes, lagThreshold, registry (TOML, where it
  differs from the shared one), checksum (of the model's entry) */}}
{{- define "inferq.workers" -}}
{{- $root := . -}}
{{- $registry := fromToml .Values.registry -}}
{{- with $registry.Error }}{{ fail (printf "registry: %s" .) }}{{ end -}}
{{- $workers := list -}}
{{- $names := dict -}}
{{- range $key, $entry := .Values.models -}}
{{- $at := printf "models.%s" $key -}}
{{- with get $names $entry.name }}{{ fail (printf "%s: %q is the model of models.%s too; for two versions of a model use its revisions" $at $entry.name .) }}{{ end -}}
{{- $_ := set $names $entry.name $key -}}
{{- $found := dict -}}
{{- range $registry.models }}{{ if eq .name $entry.name }}{{ $found = . }}{{ end }}{{ end -}}
{{- if not $found }}{{ fail (printf "%s: the registry has no model %q" $at $entry.name) }}{{ end -}}
{{- $settings := mergeOverwrite (deepCopy $root.Values.worker) (deepCopy $entry) -}}
{{- $limits := merge (dict) ($found.limits | default dict) (dict "in_flight" 64 "ack_wait_seconds" 30 "ack_pending" 10000) -}}
{{- include "inferq.checkWorker" (dict "at" $at "settings" $settings "limits" $limits "model" $found) -}}
{{- $threshold := int ($settings.scaling.lagThreshold | default $limits.in_flight) -}}
{{- $rest := 100 -}}
{{- range $settings.revisions | default dict }}{{ $rest = sub $rest .share }}{{ end -}}
{{- if lt (int $rest) 1 }}{{ fail (printf "%s: the shares of its revisions are %d percent; leave at least 1 to the registry's own" $at (sub 100 $rest)) }}{{ end -}}
{{- $revisions := merge (dict "main" (dict "share" $rest)) ($settings.revisions | default dict) -}}
{{- range $revision, $change := $revisions -}}
{{- $name := printf "%s-%s" (include "inferq.fullname" $root) $key -}}
{{- $own := "" -}}
{{- $changed := $found -}}
{{- if ne $revision "main" -}}
{{- $name = printf "%s-%s" $name $revision -}}
{{- /* Another source has files and digests of its own. */ -}}
{{- $kept := ternary (omit $found "path" "sha256") $found (hasKey $change "source") -}}
{{- $changed = mergeOverwrite (deepCopy $kept) (pick $change "source" "path" "sha256") -}}
{{- $own = toToml (dict "models" (list $changed)) -}}
{{- end -}}
{{- if gt (len $name) 63 }}{{ fail (printf "%s: the name %s is longer than 63 characters; shorten the key" $at $name) }}{{ end -}}
{{- $workers = append $workers (dict
  "name" $name
  "key" $key
  "revision" $revision
  "share" (int $change.share)
  "tag" ($change.tag | default "")
  "settings" $settings
  "model" $found
  "token" (include "inferq.token" $entry.name)
  "lanes" (append ($found.lanes | default (list "priority" "default" "flex")) "lifted")
  "lagThreshold" (div (mul $threshold 100) (int $change.share))
  "registry" $own
  "checksum" (toJson $changed | sha256sum)) -}}
{{- end -}}
{{- end -}}
{{- dict "workers" $workers | toJson -}}
{{- end }}

{{/* Says what would strand jobs or leave workers idle, before anything is installed. */}}
{{- define "inferq.checkWorker" -}}
{{- $at := .at -}}
{{- $scaling := .settings.scaling -}}
{{- $cache := .settings.modelCache -}}
{{- $inFlight := int .limits.in_flight -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.lagThreshold) $inFlight }}{{ fail (printf "%s: scaling.lagThreshold is %d, more than the %d jobs that a worker holds (limits.in_flight): full workers would not call for more" $at (int $scaling.lagThreshold) $inFlight) }}{{ end -}}
{{- $cooldown := mul 2 .limits.ack_wait_seconds -}}
{{- if lt (int $scaling.cooldownPeriod) (int $cooldown) }}{{ fail (printf "%s: scaling.cooldownPeriod is %d; it must be at least %d, twice the model's ack_wait_seconds" $at (int $scaling.cooldownPeriod) $cooldown) }}{{ end -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}{{ fail (printf "%s: scaling.minReplicas is more than scaling.maxReplicas" $at) }}{{ end -}}
{{- end -}}
{{- $replicas := int (ternary $scaling.maxReplicas $scaling.replicas $scaling.enabled) -}}
{{- if lt (int .limits.ack_pending) (int (mul $replicas $inFlight)) }}{{ fail (printf "%s: %d workers with %d jobs each need limits.ack_pending of at least %d in the registry; it is %d" $at $replicas $inFlight (mul $replicas $inFlight) (int .limits.ack_pending)) }}{{ end -}}
{{- if and $cache.existingClaim $cache.claim.create }}{{ fail (printf "%s: modelCache has both an existingClaim and claim.create; give one" $at) }}{{ end -}}
{{- if and .model.source (not $cache.download) (not $cache.existingClaim) }}{{ fail (printf "%s: modelCache.download is false and there is no existingClaim: nothing would bring the model" $at) }}{{ end -}}
{{- end }}
