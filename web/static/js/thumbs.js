// Small pictures of the portraits that this tab has sent: the service gives no inputs back, and a reload shall still show
// whose video is on its way. In the tab's session only, as the key is: forgotten with the tab, the key or the task.

const NAME = "portraits";
const KEPT = 24; // the newest
const SIDE = 480; // pixels of the longer side
const QUALITY = 0.7;
const MOST_CHARACTERS = 150_000; // of one

/** Keep a picture by the path that the service gave it; `url` is where this page has it. */
export async function keepPicture(path, url) {
  try {
    const picture = await small(url);
    if (picture.length <= MOST_CHARACTERS) store([...kept().filter(([known]) => known !== path), [path, picture]].slice(-KEPT));
  } catch {
    // It is for show only.
  }
}

/** Yield what is kept: [path, url]. */
export function* keptPictures() {
  for (const [path, picture] of kept()) {
    try {
      const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
      yield [path, URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }))];
    } catch {
      // Not what was stored.
    }
  }
}

/** Forget the picture of a path, or all. */
export const forgetPicture = (path) => store(kept().filter(([known]) => known !== path));
export const forgetPictures = () => store([]);

async function small(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const scale = Math.min(1, SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // under what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", QUALITY).split(",")[1];
}

function kept() {
  try {
    const found = JSON.parse(sessionStorage.getItem(NAME) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

function store(pictures) {
  try {
    if (pictures.length) sessionStorage.setItem(NAME, JSON.stringify(pictures));
    else sessionStorage.removeItem(NAME);
  } catch {
    // No room, or storage is forbidden to this page.
  }
}
