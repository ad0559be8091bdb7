"""`atlasvi serve`: the questions of `atlasvi query` to one minified store, over HTTP.

    app             the endpoints of a store: what `make_app` puts together
    access          who may ask: the token, the Host and Origin headers
    option_models   the options of a question as a model of its JSON body
    jobs            questions that are being answered in threads: how many, for how long, ended if the client goes
    answer_forms    answers as JSON, an Arrow stream or CSV
    store_facts     what is asked by GET: the store, its genes, its obs columns
    openapi         the description of the endpoints
    server          the process: socket, signals

    page_routes     the page of the atlas, and what it asks besides the questions
    page_answers    the same without HTTP;  static_page  the same as a folder of files
    areas           cells in a polygon of the picture, wherever a question is about cells
    tiles           the cells as points, by level;  tile_order  their order;  tile_columns  their colours

It may import `queries` and what `queries` may import. It needs starlette, uvicorn and pyarrow: pip install
'atlasvi[serve]'.
"""
