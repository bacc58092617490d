// Language and text size. They travel in the address and in the links, so that nothing is kept in the browser.

import { keepHelp } from "./offline.js";
import { country } from "./people.js";
import { language, loadStrings, translate } from "./strings.js";

const languages = document.getElementById("language");
const sizes = document.getElementById("size");
const help = document.getElementById("help");
const leave = document.getElementById("leave");

export function carry(chosen = false) {
  const now = { language, text: sizes.value };
  const query = (more = {}) => {
    const filled = Object.entries({ ...now, ...more }).filter(([, value]) => value);
    return new URLSearchParams(filled).toString();
  };
  help.href = `/help?${query({ country: country() })}`;
  leave.href = `/measures?language=${language}`;
  if (chosen) history.replaceState(null, "", `/?${query()}`);
  for (const field of document.querySelectorAll(".country input[type=hidden]")) field.value = now[field.name];
  keepHelp(help.href, leave.href);
}

export function onLanguage(changed) {
  languages.addEventListener("change", async () => {
    try {
      await loadStrings(languages.value);
    } catch {
      languages.value = language;
      return;
    }
    translate();
    carry(true);
    changed();
  });
}

sizes.addEventListener("change", () => {
  document.documentElement.dataset.text = sizes.value;
  carry(true);
});
