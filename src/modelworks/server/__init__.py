"""Start things, mount things: the ASGI application, who may speak to it, errors to HTTP, and the process around it."""
