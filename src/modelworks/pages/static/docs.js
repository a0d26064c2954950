// The API to try out: Swagger UI over the server's own OpenAPI document.
window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  // Nothing is sent elsewhere to be checked.
  validatorUrl: null,
});
