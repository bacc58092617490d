"use strict";
const at = (id) => document.getElementById(id);
let open = null;

async function send(path, body) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || "the models could not be asked");
  return found;
}

function line(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function show(names, says) {
  at("pair").replaceChildren(...says.map((text, side) => {
    const section = document.createElement("section");
    const title = line("h2", names[side]);
    title.id = `name-${side}`;
    section.setAttribute("aria-labelledby", title.id);
    section.append(title, line("p", text || "(nothing)"));
    return section;
  }));
  at("pair").hidden = false;
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter || at("ask").querySelector("button");
  button.disabled = true;
  at("votes").hidden = true;
  at("pair").hidden = true;
  at("tallies").hidden = true;
  at("status").textContent = "They are thinking …";
  try {
    const pair = await send("/ask", { prompt: at("prompt").value });
    open = pair.id;
    show(pair.names || ["Left", "Right"], pair.says);
    at("votes").hidden = !pair.blind;
    at("status").textContent = pair.vetted
      ? "A visitor would have seen none of these: the protocol answers this itself." : "";
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
    found.names.forEach((text, side) => { at(`name-${side}`).textContent = text; });
    at("status").textContent = "Your vote is kept.";
    at("tallies").replaceChildren(...found.tallies.map((text) => line("li", text)));
    at("tallies").hidden = false;
  } catch (error) {
    at("status").textContent = error.message;
  }
  at("votes").hidden = true;
});
