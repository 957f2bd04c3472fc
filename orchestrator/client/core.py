"""Every verb of the service, once, as coroutines. `Client` is the same without an event loop."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

import httpx2

from orchestrator.client import calls
from orchestrator.client.calls import Document, JobSource, Page, job_of
from orchestrator.client.connection import Connection, read_json
from orchestrator.client.differences import Preview, differences, merge_patch, require_mutable
from orchestrator.client.find import Service, elsewhere, find
from orchestrator.client.outcome import reached
from orchestrator.client.transport import Asyncio, Transport, options
from orchestrator.client.values import Job, JobName, Me, PlannedJob, Token, split_name
from orchestrator.errors import NotFound
from orchestrator.spec import TrainingJob
from orchestrator.status import Phase

DEFAULT_TEAM = "default"
_PAGE = 100
_POLL_FIRST, _POLL_LONGEST = 0.5, 5.0


def finder(url: str | None, token: str | None, allow_http: bool, context: str | None = None) -> Callable[[], Service]:
    """How a client looks for its service, at first and whenever it does not answer. A token of the environment is for
    the address of the environment: where another is given, it needs its own."""
    told = {"FATHOM_URL": url, "FATHOM_TOKEN": token, "FATHOM_ALLOW_HTTP": "1" if allow_http else None}
    given = {name: value for name, value in told.items() if value is not None}

    def look() -> Service:
        env = dict(os.environ) if context is None else elsewhere(os.environ, context)
        if url is not None and env.get("FATHOM_URL", url) != url:
            env.pop("FATHOM_TOKEN", None)
            env.pop("FATHOM_TOKEN_FILE", None)
        return find(env | given)

    return look


class AsyncClient:
    """A running service: `url` and `token`, or those of the environment (FATHOM_URL, FATHOM_TOKEN, FATHOM_TOKEN_FILE),
    or of the service that runs in FATHOM_HOME. Use as a context manager, or `await close()`.

    A job is named `name` (of the token's own team, else `default`), `team/name`, or by a `Job`. Errors are those of
    `orchestrator.errors`; Unavailable when nothing answers after several tries.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        context: str | None = None,
        timeout: float = 60.0,
        allow_http: bool = False,
        transport: Transport | None = None,
    ) -> None:
        """`context`: of the kubeconfig, whose cluster's controller it is; `timeout`: seconds without a byte;
        `allow_http`: send the token in plain text to another machine."""
        find = finder(url, token, allow_http, context)
        service = find()
        self._transport: Transport = transport or Asyncio(httpx2.AsyncClient(**options(service, timeout)))
        self._connection = Connection(find, self._transport, service)
        self._me: Me | None = None

    @property
    def url(self) -> str:
        """Of the service."""
        return self._connection.service.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._transport.close()

    # ------------------------------------------------------------------ jobs

    async def plan(self, job: JobSource) -> PlannedJob:
        """What the job will take and cost, before it is submitted; InvalidJob lists all that is wrong."""
        return await self._connection.ask(calls.plan(await self._job(job)))

    async def apply(self, job: JobSource | PlannedJob, *, dry_run: bool = False) -> Job:
        """Submit a job, or change the one of this name to be like it.

        A `PlannedJob` is refused (Conflict `stale-plan`) if prices or capacity changed since it was made. Conflict if
        the job is there and differs in what cannot change. `dry_run`: only say what it would be.
        """
        planned = job if isinstance(job, PlannedJob) else None
        seen = await self.preview(job)
        if seen.live is None:
            call = calls.create(seen.wanted, planned.id if planned else None, dry_run=dry_run)
            return await self._connection.ask(call)
        if not seen.changes or dry_run:
            return seen.live
        live = seen.live
        return await self._connection.ask(calls.patch(live.team, live.name, merge_patch(seen.changes), live.etag))

    async def preview(self, job: JobSource | PlannedJob) -> Preview:
        """What `apply` would do; Conflict where it could not."""
        wanted = job.job if isinstance(job, PlannedJob) else await self._job(job)
        try:
            live = await self.get(f"{wanted.metadata.namespace}/{wanted.metadata.name}")
        except NotFound:
            return Preview(wanted, None)
        found = differences(live, wanted)
        require_mutable(live, found)
        return Preview(wanted, live, found)

    async def get(self, name: JobName) -> Job:
        """NotFound where there is none that this token may see."""
        return await self._connection.ask(calls.get(*await self._named(name)))

    async def list(
        self,
        *,
        team: str | None = None,
        phases: Collection[Phase | str] = (),
        name: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Job]:
        """Newest first, page by page; `name`: a part of it; `limit`: at most so many."""
        wanted, cursor, left = [Phase(phase).value for phase in phases], "", limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            call = calls.jobs(team=team, phases=wanted, name=name, limit=size, cursor=cursor)
            page: Page[Job] = await self._connection.ask(call)
            for job in page.items[:left]:
                yield job
            if not page.more:
                return
            cursor, left = page.next, None if left is None else left - len(page.items)

    async def patch(self, name: JobName, spec: Document, *, etag: str | None = None) -> Job:
        """Change fields, e.g. `{"budget": {"limit": "20"}}`; None removes one. With `etag` (`Job.etag`) only if the
        job is still as it was then, else Conflict."""
        return await self._connection.ask(calls.patch(*await self._named(name), {"spec": spec}, etag))

    async def cancel(self, name: JobName, *, force: bool = False) -> Job:
        """Let it write a last checkpoint and end for good; `force`: at once, without one."""
        return await self._connection.ask(calls.act(*await self._named(name), "cancel", force=force))

    async def suspend(self, name: JobName) -> Job:
        """Let it write a checkpoint and give its machines back until it is resumed."""
        return await self._act(name, "suspend")

    async def resume(self, name: JobName) -> Job:
        """Let a suspended or failed job go on from its last checkpoint, with all its attempts anew."""
        return await self._act(name, "resume")

    async def delete(self, name: JobName, *, keep_files: bool = False, force: bool = False) -> None:
        """Stop it, then forget it and, unless told to keep them, its files; `force`: without a last checkpoint."""
        call = calls.delete(*await self._named(name), keep_files=keep_files, force=force)
        await self._connection.ask(call)

    async def wait(self, name: JobName, until: Collection[Phase | str] = (), *, timeout: float | None = None) -> Job:
        """The job once it is in one of these phases; with none named, once it ended or is suspended.

        Raises what the job ended with if it can never get there, and TimeoutError after `timeout` seconds.
        """
        wanted = frozenset(Phase(phase) for phase in until)
        key = "/".join(await self._named(name))
        end = None if timeout is None else self._transport.now() + timeout
        delay = _POLL_FIRST
        while not reached(job := await self.get(key), wanted):
            left = None if end is None else end - self._transport.now()
            if left is not None and left <= 0:
                raise TimeoutError(f"{key} is still {job.phase} after {timeout:g} s")
            await self._transport.sleep(delay if left is None else min(delay, left))
            delay = min(delay * 1.5, _POLL_LONGEST)
        return job

    # ------------------------------------------------------------------ what it says

    async def logs(
        self, name: JobName, *, follow: bool = False, attempt: int | None = None, tail: int | None = None
    ) -> AsyncIterator[str]:
        """Lines of the job's log, without their ends. `follow`: until the job has ended, over cuts and restarts of the
        service; `attempt`: of one only; `tail`: the last so many."""
        team, found = await self._named(name)
        query = [(key, str(value)) for key, value in (("attempt", attempt), ("tail", tail)) if value is not None]
        if follow:
            followed = self._connection.follow(lambda last: calls.stream(team, found, "logs", query, last))
            async with aclosing(followed) as events:
                async for event in events:
                    for line in event.data.split("\n"):
                        yield line
            return
        async with aclosing(self._connection.lines(calls.log(team, found, query))) as lines:
            async for line in lines:
                yield line

    async def events(self, name: JobName, *, follow: bool = False, after: str = "") -> AsyncIterator[Document]:
        """What the job has reported, oldest first; see `orchestrator.launch.events`."""
        async with aclosing(self._records(name, "events", follow, after)) as records:
            async for record in records:
                yield record

    async def metrics(self, name: JobName, *, follow: bool = False, after: str = "") -> AsyncIterator[Document]:
        """One record a step: `{"step", "tokens", "time", "metrics": {...}}`."""
        async with aclosing(self._records(name, "metrics", follow, after)) as records:
            async for record in records:
                yield record

    async def metrics_since(self, name: JobName, after: str = "") -> Page[Document]:
        """One page of them, and where it ends: `next` is the `after` of what comes later."""
        return await self._connection.ask(calls.records(*await self._named(name), "metrics", after))

    # ------------------------------------------------------------------ money, comparison, the service

    async def cost(self, name: JobName) -> Document:
        """Where the money of one job went."""
        return await self._connection.ask(calls.document(f"{calls.job_path(*await self._named(name))}/cost"))

    async def costs(self, team: str | None = None) -> Document:
        """Of all jobs and teams that the token may see."""
        return await self._connection.ask(calls.document("/v1/costs", [("namespace", team)] if team else []))

    async def compare(self, *names: JobName, by: str = "dollars", metric: str | None = None) -> Document:
        """Jobs beside each other; `by`: step, tokens, flops, hours or dollars; `metric`: absent: chosen."""
        query = [("job", "/".join(await self._named(name))) for name in names]
        query += [("by", by), *([("metric", metric)] if metric is not None else [])]
        return await self._connection.ask(calls.document("/v1/compare", query))

    async def capacity(self) -> Document:
        """Slots of the machines: how many there are, and who holds them."""
        return await self._connection.ask(calls.document("/v1/capacity"))

    async def me(self) -> Me:
        """Who the token is."""
        self._me = await self._connection.ask(calls.me())
        return self._me

    async def create_token(self, name: str, role: str, *, team: str | None = None, days: float | None = None) -> Token:
        """A new token; its `secret` is in this answer and never again. For admins."""
        return await self._connection.ask(calls.make_token(name, role, team, days))

    async def tokens(self) -> Sequence[Token]:
        """All of them, without secrets. For admins."""
        return await self._connection.ask(calls.tokens())

    async def revoke_token(self, name: str) -> None:
        """From now on it is refused. For admins."""
        await self._connection.ask(calls.revoke_token(name))

    # ------------------------------------------------------------------ parts

    async def _job(self, source: JobSource) -> TrainingJob:
        job = job_of(source)
        if "namespace" in job.metadata.model_fields_set:
            return job
        return job_of(job, await self._team())

    async def _named(self, name: JobName) -> tuple[str, str]:
        team, found = split_name(name)
        return team or await self._team(), found

    async def _team(self) -> str:
        """Of jobs that name none."""
        return (self._me or await self.me()).team or DEFAULT_TEAM

    async def _act(self, name: JobName, verb: str) -> Job:
        return await self._connection.ask(calls.act(*await self._named(name), verb))

    async def _records(self, name: JobName, kind: str, follow: bool, after: str) -> AsyncGenerator[Document, None]:
        team, found = await self._named(name)
        if follow:
            followed = self._connection.follow(lambda last: calls.stream(team, found, kind, (), last or after))
            async with aclosing(followed) as events:
                async for event in events:
                    yield read_json(event)
            return
        while True:
            page: Page[Document] = await self._connection.ask(calls.records(team, found, kind, after))
            for record in page.items:
                yield record
            if not page.more or page.next == after:
                return
            after = page.next
