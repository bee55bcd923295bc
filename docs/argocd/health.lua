-- Health of a FineTuneStudy for Argo CD, as kstatus sees it too: a study that searches is healthy.
-- In the ConfigMap argocd-cm: resource.customizations.health.finetune.dev_FineTuneStudy
local status = obj.status or {}
local seen = status.observedGeneration
if seen == nil or (obj.metadata.generation ~= nil and seen < obj.metadata.generation) then
  return {status = "Progressing", message = "the operator has not seen it yet"}
end

local holds = {}
for _, condition in ipairs(status.conditions or {}) do
  holds[condition.type] = condition.status == "True"
end

local health = "Healthy"
if holds.Failed or holds.Stalled then
  health = "Degraded"
elseif holds.Suspended then
  health = "Suspended"
elseif holds.Reconciling then
  health = "Progressing"
end

local message = status.message or ""
if status.trials ~= nil and status.trials.summary ~= nil and status.trials.summary ~= "" then
  message = status.trials.summary .. " trials; " .. message
end
return {status = health, message = message}
