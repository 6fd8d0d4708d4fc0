// What the pages of a local server share.

const byId = (id) => document.getElementById(id);

// Asks the program behind the page. What goes wrong is shown, and thrown.
async function act(name, value = null, failed = "Not saved: ") {
  let error = null, told = null;
  try {
    const answer = await fetch(name, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
    told = await answer.json();
    if (!answer.ok) error = failed + told.error;
  } catch {
    error = failed + "the program behind this page has stopped. Give its command again; what was saved is kept.";
  }
  byId("problem").hidden = error === null;
  byId("problem").textContent = error || "";
  if (error !== null) throw new Error(error);
  return told;
}

// onKeys({ a: accept, ArrowLeft: back }): not while something is being written, nor for a key that is held down.
// A letter counts where it stands on the keyboard if that types no Latin letter.
function onKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const letter = /^Key[A-Z]$/.test(event.code) && !/^[a-z]$/i.test(event.key) ? event.code[3] : event.key;
    const action = actions[letter.length === 1 ? letter.toLowerCase() : letter];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
