// The API to read. Without its search, which needs a worker from a blob: URL.
window.Redoc.init("/openapi.json", { disableSearch: true, hideDownloadButton: false, nativeScrollbars: true },
  document.getElementById("redoc"));
