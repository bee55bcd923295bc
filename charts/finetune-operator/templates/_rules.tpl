{{/* Rights of the operator in each namespace whose studies it runs. docs/operations.md says what for. */}}
{{- define "finetune-operator.rules" -}}
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
{{- if ne .Values.study.engine "Job" }}
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, delete]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# The Roles of study pods grant get and patch on one ConfigMap: who grants them must have them.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
# What pods need around them is followed, to put it right when somebody changes it.
- apiGroups: [""]
  resources: [serviceaccounts, services]
  verbs: [list, watch, create, patch]
# Never more than create: with patch, the answer to a request would show what is in a secret.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [list, watch, create, patch]
{{- end }}
