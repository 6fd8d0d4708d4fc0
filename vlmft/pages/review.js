// One draft at a time. What is shown as decided is on disk.
(async () => {
  const items = await act("items");
  let at = 0;
  let saving = false;

  const decided = () => items.filter((item) => item.status).length;
  const open = () => items.findIndex((item) => !item.status);

  function draw() {
    const ended = at >= items.length;
    byId("progress").max = items.length;
    byId("progress").value = decided();
    byId("count").textContent = decided() + " of " + items.length + " drafts decided";
    byId("item").hidden = ended;
    byId("end").hidden = !ended;
    byId("back").disabled = at === 0;
    byId("forward").disabled = ended;
    if (ended) {
      const left = items.length - decided();
      byId("left").textContent = left ? left + (left === 1 ? " draft has" : " drafts have") + " no decision yet; they wait for next time." : "All drafts are decided.";
      byId("open").hidden = left === 0;
      byId("end").focus();
      return;
    }
    const item = items[at];
    byId("place").textContent = "Draft " + (at + 1) + " of " + items.length;
    byId("name").textContent = item.name;
    byId("picture").src = "image/" + item.image;
    byId("picture").alt = "The image " + item.name;
    byId("asked").textContent = item.asked;
    byId("by").textContent = "by " + item.by;
    byId("text").value = item.text;
    byId("accept").setAttribute("aria-pressed", String(item.status === "accepted"));
    byId("reject").setAttribute("aria-pressed", String(item.status === "rejected"));
    byId("item").focus({ preventScroll: true });
    if (items[at + 1]) new Image().src = "image/" + items[at + 1].image;  // ready when it is its turn
  }

  async function go(to) {
    if (at < items.length) {
      const item = items[at], text = byId("text").value;
      if (item.status === "accepted" && text.trim() !== item.text.trim()) {
        try {
          await act("decide", { item: at, status: "accepted", text });  // a correction of what is accepted counts
        } catch {
          return;  // the page says why
        }
      }
      item.text = text;  // an edit stays while the page is open
    }
    at = Math.min(Math.max(to, 0), items.length);
    draw();
    window.scrollTo(0, 0);
  }

  async function decide(status) {
    if (saving || at >= items.length) return;
    saving = true;
    const here = at, text = byId("text").value;
    try {
      await act("decide", { item: here, status, text });
      Object.assign(items[here], { status, text });
      if (at === here) go(here + 1);
      else draw();
    } catch {
      // the page says why
    } finally {
      saving = false;
    }
  }

  const does = {
    accept: () => decide("accepted"), reject: () => decide("rejected"), skip: () => go(at + 1), back: () => go(at - 1),
    forward: () => go(at + 1), open: () => go(open()), edit: () => byId("text").focus(),
    finish: async () => {
      await go(at);
      await act("done");
      const accepted = items.filter((item) => item.status === "accepted").length;
      document.querySelector("main").replaceChildren(make("p", { class: "sentence", role: "status" },
        accepted + " of " + items.length + " drafts accepted. You can close this page; what was written is in the terminal."));
    },
  };
  for (const [name, action] of Object.entries(does)) byId(name).addEventListener("click", action);
  onKeys({ a: does.accept, r: does.reject, s: does.skip, e: does.edit, ArrowLeft: does.back, ArrowRight: does.forward });
  draw();
})();
