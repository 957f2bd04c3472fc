"""What runs inside the pods of an attempt: the driver beside Ray's head, and the workers' word to it.

The head's pod has a run folder of its own, as a laptop has (`launch.rayjob.agreed.RUN`). `mailbox` is the actor through
which workers of other pods write into it, `courier` takes what is new in it to the controller and brings the answer.
"""
