"""Texts of jobs, packed: most of what one of them says, all of them say. Pure."""

from __future__ import annotations

import zlib

_LIKE = (
    b'"cancelledAt","deletedAt","annotations":{"fathom.dev/created-by":"kubectl","fathom.dev/created-at":"'
    b'"burnPerHour":"0.000000","wasted":"0.000000","currency":"EUR"}"mlflow":{"experimentId":"","runId":"","url":"http'
    b'"outcome":"failed","failureClass":"","message":"","resumedFrom":"phase":"Failed","phase":"Cancelled"'
    b'"reason":"Cancelled","reason":"Failed","reason":"LimitReached","reason":"PriceMissing","reason":"Admitted"'
    b'"tracking":{"experiment":"","tags":{"deadline":"priority":"retry":{"limit":"suspend":false,"queue":{"name":"'
    b'"precision":"bf16","evaluation":{"everySteps":"globalBatchTokens":"sequenceLength":"memoryPerWorker":"storage":'
    b'"parallelism":{"expert":1,"license":"","provenance":"","gpus":8,"accelerator":"H100","budget":{"limit":"'
    b'{"apiVersion":"fathom.dev/v1alpha1","kind":"TrainingJob","metadata":{"creationTimestamp":"2026-01-01T00:00:00Z",'
    b'"finalizers":["fathom.dev/controller"],"generation":1,"name":"","namespace":"","resourceVersion":"","uid":""},'
    b'"spec":{"checkpoint":{"uri":"pvc://s3://"},"compute":{"accelerator":"cpu","cpuPerWorker":1,"image":"@sha256:",'
    b'"workers":1},"data":{"source":"pvc://","sequenceLength":},"model":{"preset":"mini"},"training":{"tokens":}},'
    b'"status":{"attemptCount":1,"attempts":[{"cost":"0.000000","endedAt":"2026-01-01T00:00:00Z","number":1,'
    b'"outcome":"succeeded","rayJob":"","startedAt":"2026-01-01T00:00:00Z"}],"conditions":['
    b'{"lastTransitionTime":"2026-01-01T00:00:00Z","message":"","observedGeneration":1,"reason":"Valid",'
    b'"status":"True","type":"Accepted"},{"lastTransitionTime":"2026-01-01T00:00:00Z","message":" per hour, ",'
    b'"observedGeneration":1,"reason":"PriceFound","status":"True","type":"Priced"},'
    b'{"lastTransitionTime":"2026-01-01T00:00:00Z","message":"","observedGeneration":1,"reason":"NoQueue",'
    b'"status":"True","type":"Admitted"},{"lastTransitionTime":"2026-01-01T00:00:00Z","message":"",'
    b'"observedGeneration":1,"reason":"Ended","status":"False","type":"Running"},'
    b'{"lastTransitionTime":"2026-01-01T00:00:00Z","message":"","observedGeneration":1,"reason":"WithinBudget",'
    b'"status":"True","type":"BudgetOK"},{"lastTransitionTime":"2026-01-01T00:00:00Z","message":"",'
    b'"observedGeneration":1,"reason":"Logged","status":"True","type":"Tracking"},'
    b'{"lastTransitionTime":"2026-01-01T00:00:00Z","message":"","observedGeneration":1,"reason":"Succeeded",'
    b'"status":"True","type":"Complete"}],"cost":{"burnPerHour":"0.000000","currency":"USD","spent":"0.000000",'
    b'"wasted":"0.000000"},"observedGeneration":1,"phase":"Succeeded","plan":{"currency":"USD",'
)
"""Pieces of jobs as an API server writes them, the likeliest last. Nothing packed outlives its process, so that they
may be other ones in each version."""
_LEVEL = 6


def pack(text: bytes) -> bytes:
    """A few hundred bytes for a job."""
    packer = zlib.compressobj(_LEVEL, zdict=_LIKE)
    return packer.compress(text) + packer.flush()


def unpack(packed: bytes) -> bytes:
    """What `pack` was given."""
    unpacker = zlib.decompressobj(zdict=_LIKE)
    return unpacker.decompress(packed) + unpacker.flush()
