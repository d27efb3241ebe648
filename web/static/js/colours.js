// The colours that the reader has chosen: the system's, light or dark. theme.js has put the choice on the root before.
import { icon } from "./dom.js";
import { t } from "./i18n.js";

const THEMES = ["auto", "light", "dark"];
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");

const theme = () => root.dataset.theme ?? "auto";

/** Call `paint` with whether it is dark: now, and whenever that changes. */
export function onColours(paint) {
  const tell = () => paint(theme() === "dark" || (theme() === "auto" && system.matches));
  system.addEventListener("change", tell);
  document.addEventListener("colours", tell);
  tell();
}

/** Let a button go through the themes, in the words of the language spoken, which is told afterwards. */
export function wireTheme(button) {
  const show = () => {
    const label = t(`tool.theme.${theme()}`);
    button.replaceChildren(icon(theme()));
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => (choose(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]), show()));
  document.addEventListener("language", show);
}

function choose(wanted) {
  if (wanted === "auto") delete root.dataset.theme;
  else root.dataset.theme = wanted;
  try {
    if (wanted === "auto") localStorage.removeItem("theme");
    else localStorage.setItem("theme", wanted);
  } catch {
    // It holds until the page is left.
  }
  document.dispatchEvent(new Event("colours"));
}
