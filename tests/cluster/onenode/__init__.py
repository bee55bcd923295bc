"""A real Kubernetes on one machine, without Docker: built from its Go modules, for tests and demos."""
