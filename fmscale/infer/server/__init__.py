"""A server of one model: OpenAI's chat completions over HTTP, and a page to talk to it.

- `api.py`     forms of requests and responses, and the checks
- `worker.py`  the model, in a thread of its own behind a queue
- `page.py`    the page at `/` (`page.html`) and its policy
- `app.py`     the routes
- `http.py`    uvicorn around the application
"""
