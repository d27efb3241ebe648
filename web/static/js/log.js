// An engine's log as a page shows it: its end, in plain lines, so that a long one costs no more than a short one.
const MOST_CHARACTERS = 100_000;
const REDRAWN = /[^\n]*\r(?=[^\r\n])/g; // a bar of progress is drawn anew after a CR: its last state is the one to see
const UNSHOWN = /\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]/g; // colours and cursor movements of a terminal

/** The end of a log, from the beginning of a line on; an ellipsis stands for what came before. */
export function endOf(text) {
  if (text.length <= MOST_CHARACTERS) return text;
  const from = text.length - MOST_CHARACTERS;
  return `…\n${text.slice(text.indexOf("\n", from) + 1 || from)}`;
}

export const plain = (text) => text.replace(/\r+\n/g, "\n").replace(REDRAWN, "").replace(UNSHOWN, "");
