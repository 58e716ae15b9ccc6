"""The ceiling: bare ASGI that answers with a ready vector; no model, no checks. PORT"""

import sys
from binascii import b2a_base64

import numpy as np
import orjson
import uvicorn

ROW = np.random.default_rng(0).standard_normal(1024).astype(np.float32)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    asked = orjson.loads((await receive())["body"])
    if asked.get("encoding_format") == "base64":
        rows = [b'"%b"' % b2a_base64(ROW, newline=False) for _ in asked["input"]]
    else:
        rows = [orjson.dumps(ROW, option=orjson.OPT_SERIALIZE_NUMPY) for _ in asked["input"]]
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % pair for pair in enumerate(rows)
    )
    body = b'{"object":"list","data":[%b],"model":"m"}' % data
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


uvicorn.run(
    app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="error"
)
