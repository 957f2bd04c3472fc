"""The custom resource definition of TrainingJob, made from `orchestrator.spec` and `orchestrator.status`. Pure.

`schema` is what one object may hold, `rules` and `fixed` are what CEL holds it to, `columns` is what `kubectl get`
shows; `definition` puts them together. `python -m orchestrator.crd` prints the file in k8s/crds.
"""
