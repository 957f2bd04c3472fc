"""The `Launcher` of a cluster. Looks at caches that watches keep, and writes through one `Writer`.

What a process must know of an attempt that it did not start itself stands in the cluster and in the run's folder: the
RayJob has the attempt's name, so that there is one at most, and `rayjob-N.json` says that it was made (`memory.Mark`).
Invariants: `look` never says that an attempt was not begun when its RayJob is there, though caches lag; the run's lock
(`driver.lock`) is held while anything of an attempt may run, as a driver on one machine holds it itself.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from orchestrator.errors import InvalidJob, NotFound, Problem, Unavailable
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import Json, Target, key_of
from orchestrator.kube.watch import Rhythm
from orchestrator.kube.writes import Writer
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder, Sight, Told
from orchestrator.launch.choices import CLAIM
from orchestrator.launch.cluster.cached import Group, Kind
from orchestrator.launch.cluster.elsewhere import suspects_before
from orchestrator.launch.cluster.kinds import (
    PODS,
    RAY_CLUSTERS,
    RAY_JOBS,
    WORKLOADS,
    condition,
    labels_of,
    leaves,
    owner_uid,
    status_of,
)
from orchestrator.launch.cluster.memory import Mark, Memory, read_mark, write_mark
from orchestrator.launch.cluster.queued import admission_at_first
from orchestrator.launch.cluster.sight import URGENT, Scene, in_words, sight_of, wanted
from orchestrator.launch.cluster.tending import Tending
from orchestrator.launch.cluster.writing import Objects, is_gated
from orchestrator.launch.control import amend_control, ordered
from orchestrator.launch.events import CheckpointAndStop
from orchestrator.launch.rayjob import ClusterSettings, Rendered, agreed, render
from orchestrator.launch.rayjob.names import attempt_name
from orchestrator.launch.removing import Remover
from orchestrator.launch.resolve import JobRef, Resolved, read_resolved
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import Reason

ASK_SECONDS = 10.0
"""A RayJob that this process has made and no watch has shown is asked for again after so long; and one that it has
deleted, and whose watch has not told of that, is deleted again."""
MAKERS = 8
"""Attempts whose objects are made at once: each takes six writes, one after the other, and mostly waits for answers."""
_STRIPES = 64
EVICTION_SECONDS = 5.0
"""So long Kueue's word on an eviction is waited for; it came before KubeRay's."""
_DRY_KEY = bytes(32)
_KUBERAY = (
    "the kinds rayjobs.ray.io and rayclusters.ray.io are not installed: install KubeRay's operator (1.7 or newer)"
)
_NO_STORAGE = (
    "is absent, and nothing in a pod outlives it: give a folder of a volume claim (pvc://CLAIM/PATH) or the URL of an "
    "object store (s3://...)"
)
_FAR_DATA = (
    "is {source}, and training reads folders: copy the dataset into a volume claim, and name it pvc://CLAIM/PATH"
)
_KUEUE = "the kind workloads.kueue.x-k8s.io is not installed: install Kueue (0.19 or newer)"


@dataclass
class _Attempt:
    """One that the controller looks after."""

    folder: RunFolder
    number: int
    job: JobRef
    memory: Memory
    mark: Mark | None
    making: Future[Json] | None = None
    """Its objects are being made, of which the last is its RayJob."""
    queue: str | None = None
    """In which it will stand; known while it is made."""
    made: Json | None = None
    """Its RayJob as the server answered, until a watch shows it."""
    asked_at: float | None = None
    """When the server was asked for it last, by a clock that only runs forward."""
    evicted_at: float | None = None
    ended_at: float | None = None
    """When its RayJob was to be deleted; by the same clock."""
    cleared: bool = False
    lock: ExitStack = field(default_factory=ExitStack)
    locked: bool = False

    @property
    def name(self) -> str:
        return attempt_name(self.job.name, self.number)

    @property
    def key(self) -> str:
        return f"{self.job.namespace}/{self.name}"

    @property
    def group(self) -> Group:
        return (self.job.uid, str(self.number))


class KubeLauncher:
    """Of one process. `follow` the cluster first; `lead` before anything is asked of it."""

    def __init__(
        self,
        kube: Kube,
        writer: Writer,
        settings: Settings,
        cluster: ClusterSettings,
        job_of: Callable[[str], TrainingJob | None],
        *,
        namespaces: Sequence[str] = (),
        say: Callable[[str], None],
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
    ) -> None:
        """`job_of`: the job of a uid; `namespaces`: those that are looked after, empty: all; `say` is called from other
        threads, too."""
        self._kube, self._settings, self._cluster, self._job_of = kube, settings, cluster, job_of
        self._namespaces = tuple(namespaces)
        self._objects = Objects(kube, writer)
        self._tending, self._remover = Tending(say), Remover(say)
        ours = agreed.JOB

        def watched(target: Target, group: Callable[[Json], Group | None], labels: str = "") -> Kind:
            return Kind(kube, target, namespaces, labels=labels, group=group, rhythm=rhythm)

        self._ray_jobs = watched(RAY_JOBS, _attempt_of, ours)
        self._ray_clusters = watched(RAY_CLUSTERS, lambda _: None)
        self._pods = watched(PODS, _attempt_of, ours)
        self._workloads = watched(WORKLOADS, lambda found: (owner_uid(found),))
        self._kinds = (self._ray_jobs, self._ray_clusters, self._pods, self._workloads)
        self._ray_jobs.on_change(self._on_ray_job)
        self._pods.on_change(self._on_pod)
        self._lock = threading.RLock()
        self._attempts: dict[Group, _Attempt] = {}
        self._newest: dict[Path, _Attempt] = {}
        """The same by the run's folder."""
        self._makers = ThreadPoolExecutor(MAKERS, thread_name_prefix="making")
        self._leads = False
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]

    # ------------------------------------------------------------------ life
    def follow(self) -> None:
        """Look at the cluster, and write nothing; `synced` tells when it is known."""
        for kind in self._kinds:
            kind.start()

    def lead(self) -> None:
        """From now on nobody else writes; `synced` tells when all is known that others have written."""
        self._leads = True
        for kind in self._kinds:
            kind.catch_up()
        self._tending.start()

    def stop(self) -> None:
        """Leave all to whoever leads next; attempts go on. What is being made comes to an end first."""
        for kind in self._kinds:
            kind.stop()
        self._tending.stop()
        self._makers.shutdown(cancel_futures=True)
        with self._lock:
            for one in list(self._newest.values()):
                self._forget(one)

    @property
    def synced(self) -> bool:
        """Whether all is known that there is."""
        return all(kind.synced for kind in self._kinds)

    @property
    def problem(self) -> str:
        """What is wrong with the cluster, and what to do; empty: nothing."""
        if self._ray_jobs.missing or self._ray_clusters.missing:
            return _KUBERAY
        return next((kind.problem for kind in self._kinds if kind.problem and not kind.missing), "")

    # ------------------------------------------------------------------ look
    def look(self, folder: RunFolder, attempt: int) -> Sight:
        if not self.synced:
            raise Unavailable(f"what runs in the cluster is not known yet: {self.problem or 'it is being listed'}")
        one = self._attempt(folder, attempt)
        if one.making is not None and not one.making.done():
            return self._being_made(one)
        self._take_made(one)
        ray_job = self._ray_job(one)
        with self._lock:
            if ray_job is None and one.mark is None:
                self._let_go(one)
                return Sight(alive=False, begun=False)
            sight = self._seen(one, ray_job)
            if sight.alive or sight.left:
                self._hold(one)
            else:
                self._let_go(one)
                self._clear(one)
        why, until = ordered(folder.control)
        if why is not None and sight.alive and sight.idle and ray_job is not None:
            self._end(one, ray_job)  # there is nothing to save
        return replace(sight, ordered=why, deadline=until)

    def _being_made(self, one: _Attempt) -> Sight:
        """As it will look at first, so that nothing is news when it is there."""
        why, until = ordered(one.folder.control)
        return Sight(
            alive=True,
            holding=False,
            up=False,
            idle=True,
            ordered=why,
            deadline=until,
            admitted=admission_at_first(one.queue),
            running=Told(False, Reason.STARTING, in_words((), 0)),
        )

    def _seen(self, one: _Attempt, ray_job: Json | None) -> Sight:
        now, scene = time.time(), self._scene(one, ray_job)
        one.memory.name(str(status_of(ray_job).get("rayClusterName", "")))
        sight = sight_of(scene, now)
        memory, told = one.memory, sight.running
        if told is not None and told.reason in URGENT and not sight.up:
            memory.trouble = told
        if scene.is_evicted:
            self._take_back(one, scene, sight)
        elif sight.verdict is not None and memory.verdict is None:
            memory.verdict = sight.verdict  # its objects go now, and with them what it was made of
        self._write_mark(one, str(ray_job["metadata"]["uid"]) if ray_job is not None else None)
        return sight

    def _take_back(self, one: _Attempt, scene: Scene, sight: Sight) -> None:
        """Of one that is evicted: its RayJob goes, or another Ray cluster would do the work of the next attempt.
        That it is Suspended means that its pods were told to go already: no checkpoint is lost by it."""
        memory = one.memory
        one.evicted_at = time.monotonic() if one.evicted_at is None else one.evicted_at
        said = condition(scene.workload, "Evicted").get("status") == "True"
        if memory.verdict is None or said:
            memory.verdict = sight.verdict
        memory.evicted = True
        waited = time.monotonic() - one.evicted_at > EVICTION_SECONDS
        if scene.ray_job is not None and (said or scene.workload is None or waited) and scene.state != "Suspending":
            self._end(one, scene.ray_job)

    def _scene(self, one: _Attempt, ray_job: Json | None) -> Scene:
        cluster = str(status_of(ray_job).get("rayClusterName", ""))
        workloads = [] if ray_job is None else self._workloads.of((str(ray_job["metadata"]["uid"]),))
        return Scene(
            ray_job=ray_job,
            ray_cluster=self._ray_clusters.get(f"{one.job.namespace}/{cluster}") if cluster else None,
            pods=self._pods.of(one.group),
            workload=workloads[0] if workloads else None,
            memory=one.memory,
        )

    def _ray_job(self, one: _Attempt) -> Json | None:
        """From the cache; from the server where that may be behind."""
        found = self._ray_jobs.get(one.key)
        if found is not None and owner_uid(found) == one.job.uid:
            one.made = None
            return found
        now = time.monotonic()
        unsure = one.mark is None if one.asked_at is None else one.made is not None and now - one.asked_at > ASK_SECONDS
        if unsure:
            one.asked_at = now
            one.made = None if self._ray_jobs.missing else self._objects.find(one.job.namespace, one.name, one.job.uid)
        return one.made

    def _attempt(self, folder: RunFolder, number: int, job: JobRef | None = None) -> _Attempt:
        """`job`: as `resolved-N.json` has it, where somebody has just read that."""
        with self._lock:
            if (known := self._newest.get(folder.root)) is not None and known.number == number:
                return known
        job, mark = job or read_resolved(folder.resolved(number)).job, read_mark(folder, number)
        one = _Attempt(folder, number, job, Memory.of(mark), mark)
        with self._lock:
            if known is not None:
                self._forget(known)
            self._attempts[one.group] = self._newest[folder.root] = one
            for pod in self._pods.of(one.group):
                one.memory.show(pod["metadata"]["name"], pod, time.time())
            return one

    def _forget(self, one: _Attempt) -> None:
        one.lock.close()
        self._newest.pop(one.folder.root, None)
        self._attempts.pop(one.group, None)

    # ------------------------------------------------------------------ what watches show
    def _on_ray_job(self, key: str, group: Group | None) -> None:
        found = self._ray_jobs.get(key)
        if self._leads and found is not None and is_gated(found) and not leaves(found):
            self._tending.do(f"admission of RayJob {key}", partial(self._let_in, key))
        with self._lock:
            one = self._attempts.get(group) if group is not None else None
            if one is not None and found is None and one.key == key:
                one.made = None

    def _let_in(self, key: str) -> None:
        """One that a process has made which died before it could do so."""
        with self._writing(key):
            found = self._ray_jobs.get(key)
        if found is not None:
            self._objects.let_in(found)

    def _on_pod(self, key: str, group: Group | None) -> None:
        with self._lock:
            one = self._attempts.get(group) if group is not None else None
            if one is not None:
                one.memory.show(key.partition("/")[2], self._pods.get(key), time.time())

    # ------------------------------------------------------------------ what is remembered
    def _write_mark(self, one: _Attempt, uid: str | None) -> None:
        if uid is None and one.mark is None:
            return
        mark = one.memory.mark(uid or (one.mark.uid if one.mark is not None else ""))
        if mark != one.mark:
            write_mark(one.folder, one.number, mark)
            one.mark = mark

    def _hold(self, one: _Attempt) -> None:
        """The run's lock, in the name of what runs elsewhere. Conflict if another process has it."""
        if not one.locked:
            one.lock.enter_context(local.hold_lock(one.folder.lock, one.number))
            one.locked = True

    def _let_go(self, one: _Attempt) -> None:
        if one.locked:
            one.lock.close()
            one.locked = False

    # ------------------------------------------------------------------ act
    def start(self, folder: RunFolder, attempt: int) -> None:
        """Everything that it needs, then its RayJob, made by another thread: `look` tells what comes of it. Safe to be
        called again after any write of an earlier call."""
        resolved = read_resolved(folder.resolved(attempt))
        job = self._job_of(resolved.job.uid)
        if job is None:
            raise NotFound(f"job {resolved.job.uid} is gone: attempt {attempt} of it is not begun")
        rendered = self._render(job, resolved, suspects_before(folder, attempt))
        one = self._attempt(folder, attempt, resolved.job)
        with self._lock:
            self._hold(one)
        folder.control.unlink(missing_ok=True)
        one.queue = job.spec.queue.name
        one.making = self._makers.submit(self._make, one.key, rendered)

    def _make(self, key: str, rendered: Rendered) -> Json:
        with self._writing(key):
            return self._objects.make(rendered)

    def _take_made(self, one: _Attempt) -> None:
        """What has come of `start`; raises what went wrong with it: then it is not known whether there is a RayJob."""
        making, one.making = one.making, None
        if making is None:
            return
        one.asked_at = None
        made = making.result()
        with self._lock:
            one.made, one.asked_at = made, time.monotonic()
            self._write_mark(one, str(made["metadata"]["uid"]))

    def _writing(self, key: str) -> threading.Lock:
        """Nothing of an attempt is cleared while it is made; others share its lock by chance."""
        return self._stripes[hash(key) % _STRIPES]

    def order_stop(self, folder: RunFolder, reason: str, grace_seconds: float) -> None:
        """By the answer to the driver's next delivery; `look` ends one that has nothing to save."""
        amend_control(folder.control, order=CheckpointAndStop(deadline=time.time() + grace_seconds, reason=reason))

    def kill(self, folder: RunFolder, attempt: int) -> None:
        """Its RayJob is deleted, by which KubeRay ends the driver within seconds; then its pods go."""
        one = self._attempt(folder, attempt)
        with self._lock:
            if (ray_job := self._ray_job(one)) is not None:
                self._end(one, ray_job)

    def _end(self, one: _Attempt, ray_job: Json) -> None:
        now = time.monotonic()
        if leaves(ray_job) or (one.ended_at is not None and now - one.ended_at < ASK_SECONDS):
            return
        one.ended_at = now
        end = partial(self._objects.end, one.job.namespace, one.name, str(ray_job["metadata"]["uid"]))
        self._tending.do(f"end of RayJob {one.key}", end)

    def _clear(self, one: _Attempt) -> None:
        """Nothing of it runs, and nothing will."""
        if not one.cleared:
            one.cleared = True
            self._tending.do(f"objects of {one.key}", partial(self._cleared, one.job.namespace, one.name, one.job.uid))

    def _cleared(self, namespace: str, name: str, owner: str) -> None:
        with self._writing(f"{namespace}/{name}"):
            if self._objects.find(namespace, name, owner) is None:  # the cache may be behind, the server is not
                self._objects.clear(namespace, name, owner)

    def remove(self, folder: RunFolder) -> None:
        with self._lock:
            if (one := self._newest.get(folder.root)) is not None:
                self._forget(one)
        self._remover.remove(folder.root)

    def sweep(self) -> None:
        """Folders, and objects of attempts that have ended while nobody cleared them."""
        self._remover.sweep(self._settings.home)
        self._tending.do("objects of attempts that have ended", self._sweep)

    def _sweep(self) -> None:
        if not self.synced:
            raise Unavailable("what runs in the cluster is not known yet")
        for found in self._ray_jobs.all():
            if is_gated(found) and not leaves(found):
                self._let_in(key_of(found))
        for found in self._objects.supported(self._namespaces):
            metadata, group = found["metadata"], _attempt_of(found)
            key = f"{metadata['namespace']}/{metadata['name']}"
            if group is None or self._ray_jobs.get(key) is not None or self._pods.of(group):
                continue
            with self._lock:
                begun = group in self._attempts and self._attempts[group].locked
            if not begun:
                self._cleared(metadata["namespace"], metadata["name"], owner_uid(found))

    # ------------------------------------------------------------------ what can be
    def capacity(self) -> None:
        """The cluster's scheduler and queues share out what there is."""
        return None

    def gpus(self) -> tuple[str, ...]:
        return ()

    def check(self, job: TrainingJob, resolved: Resolved) -> None:
        problems: list[Problem] = []
        if job.spec.checkpoint.uri is None:  # what is chosen for it is a folder of the controller
            problems.append(Problem("spec.checkpoint.uri", _NO_STORAGE))
        source = job.spec.data.source
        if "://" in source and not source.startswith(CLAIM):
            problems.append(Problem("spec.data.source", _FAR_DATA.format(source=source)))
        try:
            render(job, resolved, self._cluster, signing_key=_DRY_KEY)
        except InvalidJob as error:
            known = {problem.path for problem in problems}
            problems += [problem for problem in error.problems if problem.path not in known]
        if problems:
            raise InvalidJob(problems)

    def obstacle(self, job: TrainingJob) -> Told | None:
        if self._ray_jobs.missing or self._ray_clusters.missing:
            return Told(False, Reason.KUBERAY_MISSING, _KUBERAY)
        if job.spec.queue.name is not None and self._workloads.missing:
            return Told(False, Reason.QUEUE_MISSING, f"the job names queue {job.spec.queue.name}, and {_KUEUE}")
        return None

    def _render(self, job: TrainingJob, resolved: Resolved, suspects: tuple[str, ...]) -> Rendered:
        key = hmac.new(self._settings.signing_key(), resolved.job.uid.encode(), hashlib.sha256).digest()
        return render(job, resolved, self._cluster, signing_key=key, suspects=suspects)

    # ------------------------------------------------------------------ what pods say
    def describe(self, folder: RunFolder, attempt: int) -> str:
        one = self._attempt(folder, attempt)
        with self._lock:
            ray_job, clues = self._ray_job(one), one.memory.recent(time.time())
        words = in_words(self._pods.of(one.group), 0 if ray_job is None else wanted(ray_job))
        return "; ".join([words, *(clue.words for clue in clues[-2:])])

    def pod_of(self, namespace: str, name: str) -> Json | None:
        """A pod, from the cache, or else from the server; None: there is none."""
        if (found := self._pods.get(f"{namespace}/{name}")) is not None:
            return found
        try:
            return self._kube.get(PODS.at(namespace, name))
        except NotFound:
            return None


def _attempt_of(found: Json) -> Group | None:
    """What it belongs to, by its labels."""
    labels = labels_of(found)
    uid, attempt = labels.get(agreed.JOB_UID), labels.get(agreed.ATTEMPT)
    return (uid, attempt) if uid and attempt else None
