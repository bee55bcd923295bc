"""The contract of FineTuneStudy: what a study may say, what its status says, and how both are checked.

Everything that reads or writes a study uses these models: the generated CRD, the operator, the
Ray Tune driver in the study's pods and the `finetune` command on a laptop.
"""
