"""The live page, `finetune ui`: the reports of studies on this machine or of a cluster, served on loopback while they run.

It keeps no state: what it shows is read from the studies' records, or asked of the API server, each time.
"""
