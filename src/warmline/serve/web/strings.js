// What the page says, in one file for each language.

let strings = {};
let name = "";

export async function loadStrings(language, serviceName) {
  name = serviceName;
  const answer = await fetch(`/static/strings/${language}.json`);
  strings = await answer.json();
}

export function t(key, values = {}) {
  const all = { name, ...values };
  return (strings[key] ?? key).replace(/\{(\w+)\}/g, (whole, slot) => all[slot] ?? whole);
}
