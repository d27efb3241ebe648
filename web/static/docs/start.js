// Shows the service's own OpenAPI document. No validator: that would be a request to another host.
"use strict";
window.SwaggerUIBundle({
  url: "/api/v1/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
  docExpansion: "list",
});
