"use strict";
const at = (id) => document.getElementById(id);
let open = null;

async function send(path, body) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || "the models could not be asked");
  return found;
}

function name(names) {
  names.forEach((text, side) => { at(`name-${side}`).textContent = text; });
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter || at("ask").querySelector("button");
  button.disabled = true;
  at("votes").hidden = true;
  at("pair").hidden = true;
  at("status").textContent = "Both are thinking …";
  try {
    const pair = await send("/ask", { prompt: at("prompt").value });
    open = pair.id;
    name(pair.names || ["left", "right"]);
    pair.says.forEach((text, side) => { at(`says-${side}`).textContent = text || "(nothing)"; });
    at("pair").hidden = false;
    at("votes").hidden = !pair.blind;
    at("status").textContent = pair.vetted
      ? "A visitor would not have seen either: the protocol answers this itself." : "";
  } catch (error) {
    at("status").textContent = error.message;
  } finally {
    button.disabled = false;
  }
});

at("votes").addEventListener("click", async (event) => {
  const choice = event.target.dataset.choice;
  if (!choice || !open) return;
  const id = open;
  open = null;
  try {
    const found = await send("/vote", { id, choice });
    name(found.names);
    at("status").textContent = found.tally;
  } catch (error) {
    at("status").textContent = error.message;
  }
  at("votes").hidden = true;
});
