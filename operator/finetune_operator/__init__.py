"""The operator: turns FineTuneStudy resources into Ray clusters and reports what they find."""
