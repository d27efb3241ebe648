// Shows the service's own OpenAPI document, in the colours and with the bar of the page.
import { onColours, wireTheme } from "/static/js/colours.js";
import { $ } from "/static/js/dom.js";
import { language, speak } from "/static/js/i18n.js";

/** Where Swagger UI's own markup misleads a screen reader or a keyboard, and where it offers a choice of one. */
const mended = ({ React: { createElement } }) => {
  const unseen = (text) => createElement("span", { className: "unseen" }, text);
  const reachable = (box) => box?.querySelector("pre").setAttribute("tabindex", "0"); // it scrolls
  return {
    wrapComponents: {
      // A link inside the button that opens an operation: the button does what the link would.
      DeepLink: () => ({ text }) => createElement("span", {}, text),
      ExamplesSelect: (Choice) => (props) => (
        props.examples?.size > 1 ? createElement("label", {}, unseen("Example"), createElement(Choice, props)) : null),
      CloseIcon: (Icon) => () => createElement("span", {}, unseen("Close"), createElement(Icon)),
      TextArea: (Area) => (props) => createElement(Area, { "aria-label": "Request body", ...props }),
      HighlightCode: (Code) => (props) => createElement("div", { ref: reachable }, createElement(Code, props)),
    },
  };
};

/** The key that was given to the page in this tab. */
function keyOfTheTab() {
  try {
    return sessionStorage.getItem("api-key");
  } catch {
    return null;
  }
}

onColours((dark) => document.documentElement.classList.toggle("dark-mode", dark)); // what Swagger UI's own sheet goes by
wireTheme($("#theme"));
speak(language());
const ui = window.SwaggerUIBundle({
  url: "/api/v1/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null, // that would be a request to another host
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  syntaxHighlight: { theme: "tomorrow-night" },
  plugins: [mended],
  onComplete: () => {
    const key = keyOfTheTab();
    if (key) ui.preauthorizeApiKey("token", key); // as the page sends it, whether it is a key or a token
  },
});
