// What the form would send, as a command for a shell: for whoever goes on in a program of their own.

const DEFAULTS = { output_format: "mp4", engine: "auto", sample_steps: 4, priority: "normal", enable_online_decode: false };
const NAMELESS = { image: "portrait.png", audio: "speech.wav" }; // where nothing is chosen yet

/** Quote for a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** `media`: image and audio as in Picker, or null; `fields`: what else the API gets; `keyed`: whether it asks for a key. */
export function curl(origin, media, fields, keyed) {
  const parts = [`curl ${quoted(`${origin}/api/v1/generate`)}`];
  if (keyed) parts.push('-H "Authorization: Bearer $AVATAR_API_KEY"');
  for (const [kind, medium] of Object.entries(media)) parts.push(medium && !medium.file ? value(`${kind}_path`, medium.path) : file(kind, medium));
  for (const [name, wish] of Object.entries(fields)) if (wish !== DEFAULTS[name]) parts.push(value(name, wish));
  return parts.join(" \\\n  ");
}

/** A value as it stands: curl reads one behind -F that begins with @ or < from a file. */
const value = (name, wish) => `--form-string ${quoted(`${name}=${wish}`)}`;

function file(kind, medium) {
  const name = (medium?.name ?? NAMELESS[kind]).replace(/["\\]/g, "\\$&"); // within the quotes that curl itself reads
  return `-F ${quoted(`${kind}=@"${name}"`)}`;
}
