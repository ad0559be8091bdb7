"""The page of the atlas, and what it asks besides the questions: tiles, colours, single cells."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service.answer_forms import JSON
from atlasvi.engine.service.jobs import Job
from atlasvi.engine.service.page_answers import PAGE, POLICY, AtlasPage
from atlasvi.engine.service.refusals import Refused, explain

if TYPE_CHECKING:
    from atlasvi.engine.service.app import Service

BYTES = "application/octet-stream"
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # the address holds the identity of the tiles


def list_page_routes(service: "Service") -> list[Route]:
    """The routes of the page at `/`, and of its tiles at `/tiles/`. Without coordinates, the page says what to do."""
    tiles = service.tiles
    files = [Route(f"/{name}", _send_file(name)) for name in ("index.html", "page.js", "page.css", "LICENSES.txt")]
    files.append(Route("/", _send_file("index.html")))
    if tiles is None:
        return [*files, Route("/tiles/{rest:path}", _say_that_there_are_none)]
    page, mask = AtlasPage(service.store, tiles), service.mask
    described = _to_json(page.describe())

    async def describe(request: Request) -> Response:
        return Response(described, media_type=JSON, headers={"Cache-Control": "no-store"})

    def answer_bytes(read: Callable[..., bytes], *names: str) -> Callable[[Request], Any]:
        """What is in files already: read in a thread of its own, so that questions do not keep the picture waiting."""

        async def answer(request: Request) -> Response:
            try:
                content = await run_in_threadpool(read, *(request.path_params[name] for name in names))
            except Exception as error:
                raise explain(error, mask, service.limits) from error
            return Response(content, media_type=BYTES, headers=FOREVER)

        return answer

    def answer_job(read: Callable[[Request, Job], bytes], form: str) -> Callable[[Request], Any]:
        """What is computed: as questions are."""

        async def answer(request: Request) -> Response:
            return await service.respond(request, lambda job: job.send(read(request, job)), form, mask)

        return answer

    def read_gene(request: Request, job: Job) -> bytes:
        return page.read_gene(service.open(job), request.query_params.get("gene", ""), request.path_params["tile"])

    def tell_named(request: Request, job: Job) -> bytes:
        return _to_json(page.tell_named(request.query_params.get("name", "")))

    def tell_point(request: Request, job: Job) -> bytes:
        return _to_json(page.tell_point(request.path_params["tile"], request.path_params["place"]))

    def tell_column(request: Request, job: Job) -> bytes:
        return _to_json(page.describe_column(request.path_params["column"]))

    def tell_neighbours(request: Request, job: Job) -> bytes:
        k = request.query_params.get("k", "30")
        most = service.limits.most_neighbours
        if not k.isdecimal() or len(k) > len(str(most)) or not 1 <= int(k) <= most:
            raise QueryError(f"k is {k!r:.20}: it is a whole number from 1 to {most:,}.")
        cells: Any = service.open(job).cells
        return _to_json(page.tell_neighbours(cells, request.path_params["cell"], int(k), service.index))

    return [
        *files,
        Route("/tiles/index.json", describe),
        Route("/tiles/points/{tile:int}", answer_bytes(page.read_points, "tile")),
        Route("/tiles/columns/{column:int}.json", answer_job(tell_column, JSON)),
        Route("/tiles/columns/{column:int}/{tile:int}", answer_bytes(page.read_codes, "column", "tile")),
        Route("/tiles/genes/{tile:int}", answer_job(read_gene, BYTES)),
        Route("/tiles/cells/{tile:int}/{place:int}", answer_job(tell_point, JSON)),
        Route("/tiles/cell", answer_job(tell_named, JSON)),
        Route("/tiles/neighbours/{cell:int}", answer_job(tell_neighbours, JSON)),
    ]


def _send_file(name: str) -> Callable[[Request], Any]:
    async def send(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(PAGE / name, headers=headers)

    return send


async def _say_that_there_are_none(request: Request) -> Response:
    raise Refused(
        404,
        "The cells of this store have no places in a picture yet: make them with atlasvi embed MINI, then serve again.",
    )


def _to_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
