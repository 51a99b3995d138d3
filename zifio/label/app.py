"""The desk as a page on this machine: a few routes over `label.desk`, and the files of `label/page`.

Every label is committed before it is acknowledged, and sent again it is the same label. Beyond this machine everybody
needs a token; on it, one person may work without any. Answers carry what a browser needs to load nothing from
elsewhere and to run no script that is not ours.

Try it alone: `zifio label try.db`
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from zifio.label.desk import LONGEST_MS, MOST_AT_ONCE, Annotator, Desk, Phase, Refused
from zifio.label.referee import Referee
from zifio.label.store import Conflict
from zifio.label.writer import Writer
from zifio.loopback import AsciiJSON, Guard, add_page

PAGE = Path(__file__).parent / "page"

Key = Annotated[str, Field(min_length=8, max_length=100, pattern=r"^[\w-]+$")]
ItemName = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NextBody(_Body):
    """Asks for items."""

    n: int = Field(default=1, ge=1, le=MOST_AT_ONCE)


class LabelBody(_Body):
    """A label, under the key that makes it one however often it is sent."""

    key: Key
    item: ItemName
    said: dict[str, Any]
    ms: int = Field(default=0, ge=0, le=LONGEST_MS)
    phase: Phase = "blind"


class UndoBody(_Body):
    """Takes a label back."""

    key: Key
    label: Key


class ItemBody(_Body):
    """Names an item."""

    item: ItemName


def make_app(desk: Desk, alone: bool) -> FastAPI:
    """The application of a desk; `alone`: it can be reached from this machine only, where one person needs no token."""
    writer, referee = Writer(desk.store), Referee()

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncGenerator[None, None]:
        with writer, referee:
            yield

    app = FastAPI(title="zifio labelling desk", lifespan=running, openapi_url=None)
    app.add_middleware(Guard, alone=alone, what="desk")
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Conflict, _refused)
    app.add_exception_handler(SQLAlchemyError, _unavailable)

    async def write(request: Request, job: Callable[[Connection, Annotator], Any], lasting: bool = True) -> Any:
        """What a job of whoever asks gives, committed; or at once, where nothing is lost with what it writes."""
        token, near = _token(request), alone and "x-forwarded-for" not in request.headers
        return await asyncio.wrap_future(
            writer.submit(lambda connection: job(connection, desk.who(connection, token, near)), lasting)
        )

    _routes(app, desk, referee, write)
    add_page(app, PAGE)
    return app


def _routes(app: FastAPI, desk: Desk, referee: Referee, write: Callable[..., Any]) -> None:
    ours = [Depends(_from_our_page)]

    @app.post("/api/next", dependencies=ours)
    async def next_items(body: NextBody, request: Request) -> AsciiJSON:
        return AsciiJSON(await write(request, lambda connection, me: desk.next_items(connection, me, body.n), False))

    @app.post("/api/label", dependencies=ours)
    async def label(body: LabelBody, request: Request) -> AsciiJSON:
        def job(connection: Connection, me: Annotator) -> dict[str, Any]:
            return desk.label(connection, me, body.key, body.item, body.said, body.ms, body.phase)

        return AsciiJSON(await write(request, job))

    @app.post("/api/undo", dependencies=ours)
    async def undo(body: UndoBody, request: Request) -> AsciiJSON:
        return AsciiJSON(await write(request, lambda connection, me: desk.undo(connection, me, body.key, body.label)))

    @app.post("/api/verdict", dependencies=ours)
    async def verdict(body: ItemBody, request: Request) -> AsciiJSON:
        item = await write(request, lambda connection, me: desk.may_see_verdict(connection, me, body.item), False)
        found = await asyncio.to_thread(referee.verdict, item)
        await write(request, lambda connection, me: desk.note_shown(connection, me, body.item, "verdict"))
        return AsciiJSON(found)

    @app.post("/api/disputed", dependencies=ours)
    async def disputed(body: NextBody, request: Request) -> AsciiJSON:
        return AsciiJSON(await write(request, lambda connection, me: desk.disputed(connection, me, body.n), False))

    @app.post("/api/me", dependencies=ours)
    async def who_am_i(request: Request) -> AsciiJSON:
        me = await write(request, lambda connection, me: me, False)

        def progress() -> dict[str, Any]:
            with desk.store.read() as connection:
                return desk.progress(connection, me)

        return AsciiJSON({**me._asdict(), **await asyncio.to_thread(progress)})


def _token(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


async def _from_our_page(request: Request) -> None:
    """A header that another site's page cannot send without asking first."""
    if "x-desk" not in request.headers:
        raise Refused(403, "Wanted a request from the desk's own page.")


async def _refused(_: Request, error: Exception) -> AsciiJSON:
    return AsciiJSON({"error": str(error)}, status_code=getattr(error, "status", 409))


async def _unavailable(_: Request, error: Exception) -> AsciiJSON:
    reason = str(getattr(error, "orig", error)).splitlines()[0]
    return AsciiJSON({"error": f"The database does not answer: {reason}. Nothing was written."}, status_code=503)
