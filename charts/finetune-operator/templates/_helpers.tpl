{{/* Prefix of all names: the release's name, followed by the chart's unless that is part of it. */}}
{{- define "finetune-operator.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $name | trunc 54 | trimSuffix "-" -}}
{{- end }}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of what `helm test` creates: none that the Service, the PodDisruptionBudget or the Deployment selects. */}}
{{- define "finetune-operator.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Annotations of a hook of `helm test`; the argument is its weight. */}}
{{- define "finetune-operator.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Both security contexts fit the restricted Pod Security Standard. */}}
{{- define "finetune-operator.podSecurityContext" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.runAsUser) }}
runAsUser: {{ int64 .Values.runAsUser }}
runAsGroup: {{ int64 .Values.runAsUser }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "finetune-operator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Whether a reference of an image names a registry, as container runtimes see it: what stands before its first slash
looks like a host. Empty if not. */}}
{{- define "finetune-operator.namesRegistry" -}}
{{- if regexMatch "^([^/]*[.:][^/]*|localhost)/" . }}true{{ end -}}
{{- end }}

{{/* Reference of an image: a list of the chart's context and the image (repository, tag, digest). */}}
{{- define "finetune-operator.image" -}}
{{- $context := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $context.Values.global.imageRegistry -}}
{{- if not (include "finetune-operator.namesRegistry" $image.repository) }}{{ . }}/{{ end -}}
{{- end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $context.Chart.AppVersion }}{{ end -}}
{{- end }}

{{- define "finetune-operator.operatorImage" -}}
{{ include "finetune-operator.image" (list . .Values.image) }}
{{- end }}

{{- define "finetune-operator.trainerImage" -}}
{{ include "finetune-operator.image" (list . .Values.study.image) }}
{{- end }}

{{/* Pull secrets of the operator's pods, as JSON; empty without any. */}}
{{- define "finetune-operator.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets | uniq }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* study.podTemplate with the pull secrets of all images, as JSON; empty without either. */}}
{{- define "finetune-operator.podTemplate" -}}
{{- $template := deepCopy .Values.study.podTemplate -}}
{{- if .Values.global.imagePullSecrets -}}
{{- $spec := $template.spec | default dict -}}
{{- $secrets := concat .Values.global.imagePullSecrets ($spec.imagePullSecrets | default list) | uniq -}}
{{- $_ := set $template "spec" (set $spec "imagePullSecrets" $secrets) -}}
{{- end -}}
{{- with $template }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* study.storage in the form of a study's spec.storage, as JSON; empty without storage. */}}
{{- define "finetune-operator.storage" -}}
{{- with .Values.study.storage -}}
{{- if .claimName -}}
{{ dict "persistentVolumeClaim" (dict "claimName" .claimName) | toJson }}
{{- else if .uri -}}
{{ . | toJson }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Whether the operator's own writes are limited by an admission policy; empty if not. */}}
{{- define "finetune-operator.ownPolicy" -}}
{{- $served := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}
{{- if and (eq .Values.policy.operator "Enabled") .Values.watch.namespaces -}}
{{- fail "policy.operator must not be Enabled with watch.namespaces: a ValidatingAdmissionPolicy is cluster-scoped, and namespaced mode creates nothing cluster-scoped" -}}
{{- end -}}
{{- if or (eq .Values.policy.operator "Enabled") (and (eq .Values.policy.operator "Auto") $served (not .Values.watch.namespaces)) -}}
true
{{- end -}}
{{- end }}

{{/* Whether classes are enforced at admission; empty if not. */}}
{{- define "finetune-operator.classPolicy" -}}
{{- $served := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}
{{- if and (eq .Values.policy.classes "Enabled") .Values.watch.namespaces -}}
{{- fail "policy.classes must not be Enabled with watch.namespaces: classes and ValidatingAdmissionPolicies are cluster-scoped, and namespaced mode creates nothing cluster-scoped" -}}
{{- end -}}
{{- if or (eq .Values.policy.classes "Enabled") (and (eq .Values.policy.classes "Auto") $served (not .Values.watch.namespaces)) -}}
true
{{- end -}}
{{- end }}

{{/* How metrics are served: Authenticated, Open, or Off where the operator has no right to ask who somebody is. */}}
{{- define "finetune-operator.metricsAccess" -}}
{{- if and (eq .Values.metrics.access "Authenticated") .Values.watch.namespaces -}}
Off
{{- else -}}
{{ .Values.metrics.access }}
{{- end -}}
{{- end }}

{{/* How a monitor scrapes, below its port: https with a token, if it needs that. */}}
{{- define "finetune-operator.scrape" -}}
honorLabels: true
{{- if eq (include "finetune-operator.metricsAccess" .) "Authenticated" }}
scheme: https
tlsConfig:
  {{- with .Values.metrics.certificateSecret }}
  ca:
    secret:
      name: {{ . }}
      key: ca.crt
  serverName: {{ include "finetune-operator.fullname" $ }}-metrics.{{ $.Release.Namespace }}.svc
  {{- else }}
  # Each replica has a certificate of its own.
  insecureSkipVerify: true
  {{- end }}
{{- with .Values.metrics.tokenSecret }}
authorization:
  credentials:
    name: {{ .name }}
    key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}
