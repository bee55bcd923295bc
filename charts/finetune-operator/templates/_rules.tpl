{{/*
Rights of the operator; docs/operations.md explains them. The rules are in the templates named rights.*, plain YAML except
for a name, so that tests/operator/test_rights.py reads them without helm; where they are included says when they apply.
*/}}

{{/* In each namespace whose studies it runs. */}}
{{- define "finetune-operator.rules" -}}
{{ include "finetune-operator.rights.studies" . }}
{{- if ne .Values.study.engine "Job" }}
{{ include "finetune-operator.rights.kuberay" . }}
{{- end }}
{{ include "finetune-operator.rights.children" . }}
{{- end }}

{{/* In the whole cluster, where it runs the studies of all namespaces. */}}
{{- define "finetune-operator.clusterRules" -}}
{{ include "finetune-operator.rights.crd" . }}
{{ include "finetune-operator.rights.classes" . }}
{{- if eq .Values.metrics.access "Authenticated" }}
{{ include "finetune-operator.rights.reviews" . }}
{{- end }}
{{- end }}

{{- define "finetune-operator.rights.studies" -}}
- apiGroups: [finetune.dev]
  resources: [finetunestudies]
  verbs: [get, list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [finetunestudies/status]
  verbs: [patch]
# Owner references with blockOwnerDeletion need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [finetune.dev]
  resources: [finetunestudies/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
{{- end }}

{{- define "finetune-operator.rights.kuberay" -}}
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, delete]
{{- end }}

{{- define "finetune-operator.rights.children" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# The Roles of study pods grant get and patch on one ConfigMap: whoever grants them must have them.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
# Objects that pods need are watched, and restored when somebody changes them; get, to see first whose they are.
- apiGroups: [""]
  resources: [serviceaccounts, services]
  verbs: [get, list, watch, create, patch]
# Never more than create: with patch, the answer to a request would show what is in a secret.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
{{- end }}

{{- define "finetune-operator.rights.crd" -}}
# kopf notices when the CRD is installed or upgraded.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
{{- end }}

{{- define "finetune-operator.rights.classes" -}}
# What studies get and may ask for, and the namespaces that name a class by a label.
- apiGroups: [finetune.dev]
  resources: [finetuneclasses]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
{{- end }}

{{- define "finetune-operator.rights.reviews" -}}
# Who sends a token, and whether they may read the metrics.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end }}

{{- define "finetune-operator.rights.lease" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "finetune-operator.fullname" . }}]
  verbs: [get, update]
# A right to create cannot be limited to a name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
{{- end }}
