"""The search: what to try next, decided from the records alone. No Ray, no torch, no Kubernetes."""
