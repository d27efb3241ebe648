// Runs before the page is painted, so that neither the colours nor the language jump. A classic script for that reason.
"use strict";
(() => {
  const root = document.documentElement;
  let theme = null;
  let language = null;
  try {
    theme = localStorage.getItem("theme");
    language = localStorage.getItem("language");
  } catch {
    // Storage is forbidden to this page: the system's wishes hold.
  }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  root.lang = language ?? ((navigator.language || "en").toLowerCase().startsWith("zh") ? "zh-CN" : "en");
})();
