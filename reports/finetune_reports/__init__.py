"""Pages and pictures of studies, drawn from one document a study (`document.Report`): no torch, no Ray, no Kubernetes.

The trainer makes the document from the records and writes it beside the results; whoever has it can draw the same page.
"""
