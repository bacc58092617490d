// Leaving quickly: Esc twice, or the control in the bar. Stands alone, so that it works when nothing else does.

const TWICE_MS = 900;

const control = document.getElementById("leave");

function leave() {
  const neutral = control.href;
  document.title = "";
  document.body.replaceChildren();
  // `replace`: the way back does not lead here. The page forgets its conversation when it is hidden (page.js).
  location.replace(neutral);
}

control.addEventListener("click", (event) => {
  event.preventDefault();
  leave();
});

let last = -Infinity;
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.repeat || event.isComposing) return;
  if (event.timeStamp - last < TWICE_MS) leave();
  last = event.timeStamp;
});
