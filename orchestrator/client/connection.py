"""Asking the service, however often that takes: repeats what may be repeated, follows streams over cuts, and finds a
service that has come back at another address."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, TypeVar

from orchestrator.client.again import ATTEMPTS, Cut, again, pause
from orchestrator.client.answers import Answer, error_of
from orchestrator.client.calls import Call, Document
from orchestrator.client.find import Service
from orchestrator.client.transport import Event, Transport
from orchestrator.errors import FathomError, Unavailable

T = TypeVar("T")
PATIENCE_SECONDS = 300.0
"""How long a stream is tried to be opened again; a service that was killed is back by then."""
_END = "end"


class Connection:
    """One service, and how it is reached."""

    def __init__(self, find: Callable[[], Service], transport: Transport, service: Service) -> None:
        self.service = service
        self._find, self._transport = find, transport

    async def ask(self, call: Call[T]) -> T:
        """The value of the answer, or the error it stands for."""
        answer = await self._answer(call)
        if not answer.ok:
            raise error_of(answer)
        return call.read(answer)

    async def _answer(self, call: Call[Any]) -> Answer:
        attempt = 0
        while True:
            attempt += 1
            outcome: Answer | Cut
            try:
                outcome = await self._transport.send(self.service, call)
            except Cut as cut:
                outcome = cut
            delay = again(outcome, repeatable=call.repeatable, attempt=attempt, chance=random.random())
            if delay is None:
                if isinstance(outcome, Cut):
                    raise self._unreachable(outcome, call) from outcome
                return outcome
            await self._transport.sleep(delay)
            if isinstance(outcome, Cut):
                self._look_again()

    async def lines(self, call: Call[None]) -> AsyncGenerator[str, None]:
        """Of a text; only its beginning is asked for again, so that no line comes twice."""
        attempt, begun = 0, False
        while True:
            attempt += 1
            try:
                async with self._transport.open(self.service, call) as stream:
                    if stream.ok:
                        async for line in stream.lines:
                            begun = True
                            yield line
                        return
                    outcome: Answer | Cut = await stream.answer()
            except Cut as cut:
                outcome = cut
            delay = None if begun else again(outcome, repeatable=True, attempt=attempt, chance=random.random())
            if delay is None:
                raise self._unreachable(outcome, call) if isinstance(outcome, Cut) else error_of(outcome)
            await self._transport.sleep(delay)
            self._look_again()

    async def follow(self, make: Callable[[str], Call[None]]) -> AsyncGenerator[Event, None]:
        """Events until the service says that there will be no more; `make`: the request for those after an id.

        A cut is nothing that the reader notices: it goes on after the last event that came.
        """
        last, failed, since = "", 0, self._transport.now()
        while True:
            call = make(last)
            try:
                async with self._transport.open(self.service, call) as stream:
                    if stream.ok and stream.of_events:
                        async for event in stream.events:
                            failed, last = 0, event.id or last
                            if event.event == _END:
                                return
                            if event.data or event.retry is None:  # else it only says when to come back
                                yield event
                        failed, outcome = 0, Cut("the stream ended before the job did", arrived=True)
                    else:
                        outcome = self._refused(await stream.answer())
            except Cut as cut:
                outcome = cut
            now = self._transport.now()
            if failed == 0:
                since = now
            failed += 1
            if now - since > PATIENCE_SECONDS:
                raise self._unreachable(outcome, call) from outcome
            await self._transport.sleep(pause(min(failed, ATTEMPTS), random.random()))
            self._look_again()

    def _refused(self, answer: Answer) -> Cut:
        """A stream that is not given now; raises the error where it will not be given later either."""
        if again(answer, repeatable=True, attempt=1, chance=0.0) is None:
            raise error_of(answer)
        return Cut(str(error_of(answer)), arrived=True)

    def _look_again(self) -> None:
        """It may have come back elsewhere, with another token; where it has not, the old address is tried."""
        with suppress(FathomError):
            self.service = self._find()

    def _unreachable(self, cut: Cut, call: Call[Any]) -> Unavailable:
        """After the last try."""
        try:
            self._find()
        except Unavailable as error:
            return error  # it knows more: the service is gone, and how to start it
        except FathomError:
            pass
        if cut.arrived and not call.repeatable:
            return Unavailable(
                f"{self.service.url} broke off ({cut}) before it answered {call.method} {call.path}: whether it was "
                "done is not known; look before you try again"
            )
        return Unavailable(
            f"{self.service.url} does not answer ({cut}): is the service running, and the address right?"
        )


def read_json(event: Event) -> Document:
    """The document of one event."""
    try:
        found = json.loads(event.data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unavailable(f"the service sent an event that is no JSON object: {event.data[:200]!r}")
    return found
