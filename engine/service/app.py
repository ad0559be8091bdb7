"""The endpoints of a service: the questions to one minified store, which is opened once for all."""

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.neighbours.index_file import IndexFile, name_index
from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.queries.opened_question import OpenedQuestion
from atlasvi.engine.queries.question import Asking, OfThisMachine, Question
from atlasvi.engine.service import store_facts
from atlasvi.engine.service.access import Guard, refuse
from atlasvi.engine.service.answer_forms import ARROW, CSV, JSON, choose_form, send_answer
from atlasvi.engine.service.areas import locate
from atlasvi.engine.service.jobs import Busy, Job, Jobs, collect_warnings
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.openapi import describe
from atlasvi.engine.service.option_models import Options, complete, find_marked, make_model, read_options
from atlasvi.engine.service.page_routes import list_page_routes
from atlasvi.engine.service.received import Room, is_counts, list_parameters, read_json, receive_counts
from atlasvi.engine.service.refusals import Mask, Refused, explain
from atlasvi.engine.service.sizes import check_question
from atlasvi.engine.service.tiles import Tiles
from atlasvi.engine.service.watched_cells import WatchedCells

log = logging.getLogger(__name__)


class Service:
    """A store with its model and its index, opened once, and the questions that are being answered."""

    def __init__(
        self, store: KeptPosterior, questions: Mapping[str, Question], limits: Limits, tiles: Tiles | None = None
    ) -> None:
        self.store, self.questions, self.limits, self.tiles = store, questions, limits, tiles
        self.bodies, self.uploads = Room(limits.all_bodies_bytes), Room(limits.all_uploads_mb * 10**6)
        self.run = store.run
        self.run.model.eval()
        self.index = IndexFile(name_index(store.path), store) if name_index(store.path).exists() else None
        self.models = {name: make_model(question, limits) for name, question in questions.items()}
        self.mask = Mask.of(store, self.run, tiles)
        self.facts = store_facts.tell_store(store, list(questions))
        self.jobs: Jobs

    @contextlib.asynccontextmanager
    async def live(self, app: Starlette) -> AsyncIterator[None]:
        """Starts the threads, and ends what they do at the end."""
        self.jobs = Jobs(self.limits.at_once, self.limits.waiting, self.limits.seconds)
        with collect_warnings(), contextlib.closing(self.jobs):
            yield

    async def answer(self, request: Request, question: Question) -> Response:
        """A question: POST /api/NAME."""
        form = choose_form(request.headers.get("accept", "*/*"))
        if form is None:
            raise Refused(406, f"The forms of answers are {JSON}, {ARROW} and {CSV}: accept one of them.")
        with contextlib.ExitStack() as received:
            return await self._answer(request, question, form, received)

    async def _answer(
        self, request: Request, question: Question, form: str, received: contextlib.ExitStack
    ) -> Response:
        model, counts = self.models[question.name], None
        if is_counts(request) and find_marked(question, OfThisMachine):
            given, rows = self._read(model, list_parameters(request))
            counts = await receive_counts(request, self.limits, self.uploads, received)
        else:
            given, rows = await self._read_body(request, model, received)
        polygon = given.pop("polygon", None)
        options, mask = complete(question, given), self.mask.with_upload(counts)

        def work(job: Job) -> None:
            opened = self.open(job)
            check_question(question, options, opened.cells, len(self.run.genes), self.limits)
            located, chosen = locate(self.tiles, opened.cells, options, rows, polygon)
            with contextlib.ExitStack() as stack:
                asking = Asking(
                    lambda: opened,
                    lambda: opened,
                    set(given),
                    stack.callback,
                    job.check,
                    counts,
                    chosen,
                    self.index,
                    self.limits.most_values,
                )
                send_answer(question.answer(asking=asking, **located), form, job, self.limits, mask)

        return await self.respond(request, work, form, mask, received)

    async def tell_store(self, request: Request) -> Response:
        """GET /api/info."""
        return JSONResponse(self.facts)

    async def tell_genes(self, request: Request) -> Response:
        """GET /api/genes?pattern=TEXT."""
        return JSONResponse(store_facts.find_genes(self.run.genes, request.query_params.get("pattern", "")))

    async def tell_column(self, request: Request) -> Response:
        """GET /api/obs/COLUMN; POST, with a body that chooses cells, for these cells."""
        with contextlib.ExitStack() as received:
            return await self._tell_column(request, received)

    async def _tell_column(self, request: Request, received: contextlib.ExitStack) -> Response:
        name, rows, polygon = request.path_params["column"], None, None
        options: dict[str, Any] = {}
        if request.method == "POST":
            count = self.questions["count"]
            given, rows = await self._read_body(request, self.models["count"], received)
            polygon = given.pop("polygon", None)
            options = complete(count, given)

        def work(job: Job) -> None:
            cells = self.open(job).cells
            if options:
                check_question(self.questions["count"], options, cells, len(self.run.genes), self.limits)
            chosen, (_, inside) = None, locate(self.tiles, cells, options, rows, polygon)
            if inside is not None or any(value is not None for value in options.values()):
                where = [*(options["where"] or []), *([] if inside is None else [inside])]
                chosen = choose_cells(cells, options["cells"], where)
            job.send(json.dumps(store_facts.tell_column(cells, name, chosen), allow_nan=False).encode())

        return await self.respond(request, work, JSON, self.mask, received)

    def open(self, job: Job) -> OpenedQuestion:
        """The model and the cells for one job, which stops when they are read next if it is to end."""
        return OpenedQuestion.of_parts(self.run, WatchedCells(self.store, job.check))

    async def _read_body(
        self, request: Request, model: type[Options], received: contextlib.ExitStack
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        return self._read(model, await read_json(request, self.limits, self.bodies, received))

    def _read(self, model: type[Options], given: bytes | Mapping[str, Any]) -> Any:
        try:
            return read_options(model, given)
        except ValueError as error:
            raise Refused(422, str(error)) from None

    async def respond(
        self,
        request: Request,
        work: Callable[[Job], None],
        form: str,
        mask: Mask,
        received: contextlib.ExitStack | None = None,
    ) -> Response:
        """What the work sends as a response, once its first piece is there.

        received  what came with the request, which is closed when the work does no more
        """
        kept = contextlib.ExitStack() if received is None else received.pop_all()
        try:
            job = self.jobs.start(work, kept.close)
        except Busy:
            kept.close()
            raise Refused(503, "The service is busy: ask again later.", {"Retry-After": "5"}) from None

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        try:
            first = await self.jobs.first_piece(job, gone)
        except Exception as error:
            raise explain(error, mask, self.limits) from error
        if first is None:
            return Response(status_code=499)
        headers = {"Cache-Control": "no-store"}
        if job.warnings:
            headers["Atlasvi-Warnings"] = json.dumps(list(map(mask, job.warnings)))  # JSON in ASCII
        return JobResponse(self._follow(job, first, mask), lambda: self.jobs.end(job), headers, form)

    async def _follow(self, job: Job, first: bytes, mask: Mask) -> AsyncIterator[bytes]:
        try:
            async for piece in job.pieces(first):
                yield piece
        except Exception as error:
            log.warning("an answer broke off: %s", explain(error, mask, self.limits).sentence)
            raise


class JobResponse(StreamingResponse):
    """The pieces of an answer. Its job ends with it, also if the client goes before the first piece is asked for."""

    def __init__(
        self, pieces: AsyncIterator[bytes], end: Callable[[], None], headers: Mapping[str, str], form: str
    ) -> None:
        super().__init__(pieces, 200, headers, form)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def make_app(
    store: KeptPosterior,
    questions: Mapping[str, Question],
    limits: Limits | None = None,
    token: str | None = None,
    page: bool = True,
    hosts: tuple[str, ...] = (),
    tiles: Tiles | None = None,
) -> Starlette:
    """The service of a store, as an ASGI application.

    questions  by name, as `cli.question_command` holds them
    token      what each request must bring; None: nothing (see `Guard`)
    page       whether to serve the page at `/`
    hosts      names by which this machine may be called, besides localhost
    tiles      of the store's embedding, which the page shows and polygons are found by; None: there is none
    """
    service = Service(store, questions, limits or Limits(), tiles)
    document = describe(questions, service.models, service.models["count"], token is not None)

    async def tell_endpoints(request: Request) -> Response:
        return JSONResponse(document)

    routes = [
        Route("/openapi.json", tell_endpoints),
        Route("/api/info", service.tell_store),
        Route("/api/genes", service.tell_genes),
        Route("/api/obs/{column:path}", service.tell_column, methods=["GET", "POST"]),
        *(Route(f"/api/{name}", _bind(service, each), methods=["POST"]) for name, each in questions.items()),
    ]
    if page:
        routes += list_page_routes(service)
    handlers: dict[Any, Any] = {
        Refused: lambda request, error: refuse(error.status, error.sentence, error.headers),
        HTTPException: _explain_status,
        ClientDisconnect: lambda request, error: Response(status_code=499),
        Exception: _explain_fault,
    }
    guard = Middleware(Guard, token=token, hosts=hosts, send_seconds=service.limits.send_seconds)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=service.live)


def _bind(service: Service, question: Question) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return await service.answer(request, question)

    return answer


def _explain_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "There is nothing at this address: /openapi.json lists what there is.",
        405: f"This address is not for {request.method:.20}.",
    }
    headers = dict(error.headers) if error.headers else None
    return refuse(error.status_code, sentences.get(error.status_code, f"{error.detail}."), headers)


def _explain_fault(request: Request, error: Exception) -> Response:
    return refuse(500, "The service failed to answer: its log says why.")
