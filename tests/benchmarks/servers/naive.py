"""What most people write first: FastAPI over sentence-transformers. PORT FOLDER DTYPE"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

port, folder, dtype = sys.argv[1:4]
model = SentenceTransformer(
    folder, device="cpu", model_kwargs={"torch_dtype": getattr(torch, dtype)}
)
app = FastAPI()


class Request(BaseModel):
    model: str
    input: list[str] | str


@app.post("/v1/embeddings")
def embed(request: Request):
    texts = [request.input] if isinstance(request.input, str) else request.input
    vectors = model.encode(texts, normalize_embeddings=True)
    data = [
        {"object": "embedding", "index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": request.model}


uvicorn.run(app, port=int(port), access_log=False, log_level="error")
